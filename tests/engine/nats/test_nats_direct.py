"""Reading without a consumer: the same records as with one, without gaps, or an error."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from nats.aio import msg as nats_msg

from moat_kv import errors
from moat_kv.engine import (
    nats,
    nats_connection,
    nats_consumer,
    nats_direct,
    nats_line,
    nats_reading,
    nats_settings,
    nats_subjects,
)
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe
from moat_kv.testing import nats as nats_servers

pytestmark = pytest.mark.anyio

A = P("a")


@asynccontextmanager
async def connected(
    url: str,
) -> AsyncIterator[tuple[nats_connection.Connection, nats_subjects.Names]]:
    settings = nats_settings.parse(url)
    connection = await nats_line.Line(settings, "test").first()
    try:
        yield connection, nats_subjects.Names(settings.access.network)
    finally:
        await connection.close()


async def test_a_copy_tells_what_a_consumer_tells(url: str) -> None:
    async with nats.NatsEngine(url).running(replica := engine_probe.DictReplica()):
        pass
    engine = nats.NatsEngine(url)
    async with engine.running(replica), connected(url) as (connection, names):
        writer = engine_probe.Writer(engine)
        for start in range(0, 2_500, 500):
            await writer.group(
                *[writer.make(Path("n", n), b"1") for n in range(start, start + 500)]
            )
        await writer.set(A, b"2")
        direct = await nats_direct.read(connection, names, names.all)
        pushed = [
            item
            async for some in nats_consumer.read(connection, names, names.followed, 0)
            for item in some
        ]
        assert len(direct) == 2_501 > 2 * nats_direct.BATCH
        assert direct == pushed
        later = await nats_direct.read(connection, names, names.all, since=2_400)
        assert later == pushed[2_400:]
        (one,) = await nats_direct.read(connection, names, names.subject(Path("n", 7)))
        assert one == pushed[7]
        assert await nats_direct.read(connection, names, names.subject(P("nothing"))) == []


async def test_a_node_that_is_frozen_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nats_direct, "ANSWER_S", 0.3)
    with nats_servers.server(sync=False) as node:
        url = f"nats://{node.address}/house"
        async with nats.NatsEngine(url).running(engine_probe.DictReplica()):
            pass
        async with connected(url) as (connection, names):
            node.freeze()
            try:
                began = time.monotonic()
                with anyio.fail_after(30), pytest.raises(nats_connection.NoAnswer, match="in time"):
                    await nats_direct.read(connection, names, names.all)
                assert 0.3 <= time.monotonic() - began < 20
            finally:
                node.thaw()


async def test_an_answer_with_a_gap_is_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = nats.NatsEngine(url)
    came = nats_direct.Reader._came

    async def lose_the_third(self: nats_direct.Reader, message: nats_msg.Msg) -> None:
        if (message.headers or {}).get("Nats-Sequence") != "3":
            await came(self, message)

    async with engine.running(engine_probe.DictReplica()), connected(url) as (connection, names):
        writer = engine_probe.Writer(engine)
        for number in range(5):
            await writer.set(Path(number), b"1")
        monkeypatch.setattr(nats_direct.Reader, "_came", lose_the_third)
        with pytest.raises(nats_connection.NoAnswer, match="a message is missing"):
            await nats_direct.read(connection, names, names.all)


@pytest.mark.parametrize("sent", [0, 3], ids=["lost", "answered-thrice"])
async def test_a_question_that_nobody_takes_is_sent_again_and_one_answer_counts(
    url: str, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    monkeypatch.setattr(nats_direct, "AGAIN_S", 0.05)
    ask, count = nats_direct.Reader._ask, 0

    async def ask_otherwise(self: nats_direct.Reader, question: bytes) -> None:
        nonlocal count
        count += 1
        if count > 1:
            await ask(self, question)
            return
        self._number += not sent
        for _ in range(sent):
            await ask(self, question)

    engine = nats.NatsEngine(url)
    async with engine.running(engine_probe.DictReplica()), connected(url) as (connection, names):
        writer = engine_probe.Writer(engine)
        for number in range(5):
            await writer.set(Path(number), b"1")
        expected = await nats_direct.read(connection, names, names.all)
        assert len(expected) == 5
        monkeypatch.setattr(nats_direct.Reader, "_ask", ask_otherwise)
        assert await nats_direct.read(connection, names, names.all) == expected
        assert count > 1


@pytest.mark.parametrize(
    ("stamp", "nanoseconds"),
    [
        ("2026-11-22T09:29:39.172928586Z", 1795339779172928586),
        ("2026-11-22T09:29:39.17Z", 1795339779170000000),
        ("2026-11-22T09:29:39Z", 1795339779000000000),
    ],
    ids=["nanoseconds", "zeros-left-out", "whole"],
)
def test_a_time_is_that_of_the_consumer(stamp: str, nanoseconds: int) -> None:
    assert nats_direct.stored_at(stamp) == nanoseconds / 1e9


async def test_all_goes_on_without_any_consumer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while NATS's metadata has no leader."""
    here, there = nats.NatsEngine(url), nats.NatsEngine(url)
    near, far = engine_probe.DictReplica(), engine_probe.DictReplica()
    async with here.running(near), there.running(far):
        writer = engine_probe.Writer(here)
        await writer.set(A, b"0")
        with anyio.fail_after(30):
            while far.heads != near.heads:
                await anyio.sleep(0.01)
        started = nats_consumer.Consumer.start

        async def refused(*arguments: object) -> int:
            raise nats_connection.Refused(503, 10008, "JetStream system temporarily unavailable")

        monkeypatch.setattr(nats_consumer.Consumer, "start", refused)
        for engine in (here, there):
            consumer = engine._feed._consumer
            assert consumer is not None
            await consumer.stop()
        began = time.monotonic()
        for number in range(5):
            await writer.group(writer.make(A, b"%d" % number), writer.make(Path("b", number), b"1"))
        assert time.monotonic() - began < 10
        with anyio.fail_after(30):
            while far.heads != near.heads:
                await anyio.sleep(0.01)
        assert [each.value for each in await there.history(A, limit=2)] == [b"4", b"3"]
        monkeypatch.setattr(nats_consumer.Consumer, "start", started)
        with anyio.fail_after(30):
            while not here._feed._is_fed:
                await anyio.sleep(0.01)
        last = await writer.set(A, b"last")
        assert near.heads[A] == last


async def test_a_history_without_its_end_is_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a node tells it that has not caught up yet."""
    monkeypatch.setattr(nats_reading, "STALE_S", 0.1)
    engine = nats.NatsEngine(url)
    read = nats_direct.read

    async def behind(*arguments: Any) -> list[nats_consumer.Item]:
        return (await read(*arguments))[:-1]

    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        first, second = await writer.set(A, b"1"), await writer.set(A, b"2")
        monkeypatch.setattr(nats_direct, "read", behind)
        assert await engine.history(A, limit=9) == [second, first]

        async def also_behind(*arguments: Any) -> AsyncIterator[list[nats_consumer.Item]]:
            yield await behind(arguments[0], arguments[1], arguments[2][0])

        monkeypatch.setattr(nats_consumer, "read", also_behind)
        monkeypatch.setattr(engine._reading, "_patience_s", 0.3)
        with pytest.raises(errors.Detached, match="has all of it"):
            await engine.history(A, limit=9)
