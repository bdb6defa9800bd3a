"""A server on a real NATS goes on when that is gone, frozen or another one, and comes back."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import nats as nats_engine
from moat_kv.engine import (
    nats_clock,
    nats_compact,
    nats_line,
    nats_remote,
    nats_stream,
    nats_touch,
    network,
)
from moat_kv.entry import Record
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe, nats, ports, proxy
from tests.client import waiting

pytestmark = pytest.mark.anyio

A, B = P("a"), P("b")


class Server:
    """An engine on a network, and what it shows."""

    def __init__(
        self, url: str, file: pathlib.Path, name: str, *, patience_s: float = 20.0
    ) -> None:
        self.replica = engine_probe.DictReplica()
        self.remote = nats_remote.NatsRemote(url, name=name)
        self.engine = network.NetworkEngine(
            self.remote, file, origin=f"{name}:log", patience_s=patience_s
        )
        self.writer = engine_probe.Writer(self.engine)

    def running(self) -> AbstractAsyncContextManager[None]:
        return self.engine.running(self.replica)

    async def until(self, condition: Callable[[], bool], limit_s: float = 30) -> None:
        with anyio.fail_after(limit_s):
            while not condition():
                await anyio.sleep(0.02)

    async def set(self, path: Path, value: bytes | None) -> Record:
        return await self.writer.set(path, value)


def off_s(server: Server, right: Callable[[], float]) -> float:
    """By how much its time is wrong at least, whatever the machine did between two looks at it."""
    before, now, after = right(), server.engine.now(), right()
    return max(before - now, now - after, 0.0)


@pytest.fixture
def own_node() -> Iterator[nats.Node]:
    with nats.server() as node:
        yield node


async def test_without_nats_a_server_goes_on_and_starts_and_comes_back(
    tmp_path: pathlib.Path, own_node: nats.Node
) -> None:
    url, file = f"nats://{own_node.address}/house", tmp_path / "copy.sqlite"
    one = Server(url, file, "n1")
    async with one.running():
        assert (await one.set(A, b"\x01")).rev > 0
        own_node.kill()
        await one.until(lambda: not one.engine.attached)
        assert "127.0.0.1" in str(one.engine.trouble) or "NATS" in str(one.engine.trouble)
        assert (await one.set(A, b"\x02")).rev < 0
        with pytest.raises(errors.Detached):
            await one.writer.set(A, b"\x03", expect=1)
    two = Server(url, file, "n1")
    two.writer._tick = 10
    async with two.running():
        assert not two.engine.attached
        facts = two.engine.describe()
        assert (facts["attached"], facts["server"], facts["replicas"]) == (False, None, None)
        assert two.replica.values == {A: b"\x01"}
        assert two.replica.covers[A].value == b"\x02"
        assert (await two.set(B, b"\x04")).rev < 0
        own_node.start()
        await two.until(lambda: two.engine.attached and not two.replica.covers)
        assert two.replica.values == {A: b"\x02", B: b"\x04"}
        assert (await two.set(B, b"\x05")).rev > 0


async def test_a_newcomer_without_nats_is_told_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_line, "FIRST_CONNECT_S", 0.3)
    with socket.socket() as mute:  # bound, so that nobody else gets it, and not listened to
        mute.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{mute.getsockname()[1]}"
        server = Server(url, tmp_path / "copy.sqlite", "n1")
        with pytest.raises((errors.EngineUnfit, BaseExceptionGroup)) as caught:
            async with server.running():
                raise AssertionError("it cannot serve")
    found = caught.value
    while isinstance(found, BaseExceptionGroup):
        (found,) = found.exceptions
    assert isinstance(found, errors.EngineUnfit)


async def test_a_frozen_node_makes_writes_pending_and_loses_none(
    tmp_path: pathlib.Path, own_node: nats.Node
) -> None:
    url = f"nats://{own_node.address}/house"
    server = Server(url, tmp_path / "copy.sqlite", "n1", patience_s=1.0)
    async with server.running():
        await server.set(A, b"\x01")
        own_node.freeze()
        try:
            with anyio.fail_after(30):
                late = await server.set(A, b"\x02")
            assert late.rev < 0
            assert (await server.set(A, b"\x03")).rev < 0
            assert (await server.set(B, b"\x04")).rev < 0
            await server.until(lambda: not server.engine.attached)
        finally:
            own_node.thaw()
        await server.until(lambda: server.engine.attached and not server.replica.covers)
        assert server.replica.values == {A: b"\x03", B: b"\x04"}
        history = await server.engine.history(A, limit=10)
        assert [record.value for record in history] in (
            [b"\x03", b"\x01"],
            [b"\x03", b"\x02", b"\x01"],
        )


async def test_two_servers_that_were_cut_off_agree_on_the_later_write(
    tmp_path: pathlib.Path, own_node: nats.Node
) -> None:
    url = f"nats://{own_node.address}/house"
    one, two = (Server(url, tmp_path / f"{name}.sqlite", name) for name in ("n1", "n2"))
    async with one.running(), two.running():
        await one.set(A, b"\x01")
        own_node.kill()
        await one.until(lambda: not one.engine.attached and not two.engine.attached)
        await two.set(A, b"\x02")
        await anyio.sleep(0.05)
        await one.set(A, b"\x03")
        own_node.start()
        for server in (one, two):
            await server.until(lambda s=server: s.engine.attached and not s.replica.covers)  # type: ignore[misc]
        await waiting.until(lambda: one.replica.values == two.replica.values)
        assert one.replica.values[A] == b"\x03"
        places = [path for path in one.replica.values if path[0] == ".moat"]
        assert [str(path[-1]) for path in places] == ["suite:1:2"] or len(places) == 1


async def test_a_server_that_is_cut_off_when_deletions_are_to_be_forgotten_goes_on(
    tmp_path: pathlib.Path, own_node: nats.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_compact, "EVERY_S", 0.1)
    monkeypatch.setattr(nats_remote, "PATIENCE_S", 1.0)  # so long each try takes
    tries = 0
    compact = nats_compact.Compactor.compact

    async def counted(compactor: nats_compact.Compactor) -> int:
        nonlocal tries
        tries += 1
        return await compact(compactor)

    monkeypatch.setattr(nats_compact.Compactor, "compact", counted)
    server = Server(f"nats://{own_node.address}/house", tmp_path / "copy.sqlite", "n1")
    async with server.running():
        await server.set(A, b"\x01")
        own_node.kill()
        await server.until(lambda: not server.engine.attached)
        done = tries
        await server.until(lambda: tries > done + 3)
        assert (await server.set(A, b"\x02")).rev < 0
        own_node.start()
        await server.until(lambda: server.engine.attached and not server.replica.covers)
        assert server.replica.values == {A: b"\x02"}


async def test_another_stream_makes_a_server_begin_anew_with_its_outbox(
    tmp_path: pathlib.Path,
) -> None:
    file, port = tmp_path / "copy.sqlite", ports.free_port()
    url = f"nats://127.0.0.1:{port}/house"
    first = nats.Node(tmp_path / "first", port=port)
    first.start()
    server = Server(url, file, "n1")
    async with server.running():
        await server.set(A, b"\x01")
        epoch = server.engine.epoch
        first.stop()
        await server.until(lambda: not server.engine.attached)
        await server.set(B, b"\x02")
    second = nats.Node(tmp_path / "second", port=port)
    second.start()
    try:
        other = Server(url, tmp_path / "other.sqlite", "n2")
        async with other.running():
            other.writer._tick = 100
            await other.set(P("c"), b"\x03")
        again = Server(url, file, "n1")
        async with again.running():
            await again.until(lambda: again.engine.attached and not again.replica.covers)
            assert again.engine.epoch != epoch
            assert again.replica.values == {P("c"): b"\x03", B: b"\x02"}
    finally:
        second.stop()


async def test_a_strict_read_sees_what_was_answered_elsewhere(
    tmp_path: pathlib.Path, own_node: nats.Node
) -> None:
    url = f"nats://{own_node.address}/house"
    one, two = (Server(url, tmp_path / f"{name}.sqlite", name) for name in ("n1", "n2"))
    async with one.running(), two.running():
        for number in range(50):
            await one.set(A, bytes([number]))
            await two.engine.catch_up()
            assert two.replica.values[A] == bytes([number])
        own_node.kill()
        with pytest.raises(errors.Detached):
            await two.engine.catch_up()


async def test_the_engine_s_time_is_nats_s_whatever_the_date_here_is(
    tmp_path: pathlib.Path, own_node: nats.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 3_600)
    server = Server(f"nats://{own_node.address}/house", tmp_path / "copy.sqlite", "n1")
    async with server.running():
        clock = server.remote._feed.clock
        assert off_s(server, right) <= clock.uncertain_s < math.inf
        # What is written tells it, too; and nothing that is known already is asked.
        clock._now = clock._before = nats_clock._Limits()
        record = await server.set(A, b"\x01")
        await server.set(A, b"\x02")
        assert abs(server.engine.now() - record.at) < 60
        assert off_s(server, right) <= clock.uncertain_s < math.inf
        probes = server.remote._probes
        monkeypatch.setattr(nats_remote, "TELLING_S", clock.uncertain_s)
        await server.remote.learn_time()
        assert server.remote._probes == probes
        monkeypatch.setattr(nats_remote, "TELLING_S", 0.0)
        await server.remote.learn_time()
        assert server.remote._probes == probes + nats_remote.MORE_TRIPS


async def test_who_starts_again_behind_a_slow_line_knows_when_its_writes_were_made(
    tmp_path: pathlib.Path, own_node: nats.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_touch, "DETACH_S", 0.5)
    file, paths = tmp_path / "n1.sqlite", [P("a") / number for number in range(20)]
    async with proxy.proxied(own_node.port) as line:
        urls = [f"nats://127.0.0.1:{port}/house" for port in (line.port, own_node.port)]
        one, two = Server(urls[0], file, "n1"), Server(urls[1], tmp_path / "n2.sqlite", "n2")
        two.writer._tick = 1_000
        async with two.running():
            async with one.running():
                await one.set(B, b"\x01")
                line.refuse()
                await one.until(lambda: not one.engine.attached)
                for path in paths:
                    await two.set(path, b"\x02")
                await anyio.sleep(2.5)
                for path in paths:
                    assert (await one.set(path, b"\x03")).rev < 0
            right, sure_end = time.time, nats_stream.sure_end
            monkeypatch.setattr(time, "time", lambda: right() - 3_600)

            async def late_sure_end(*arguments: Any) -> int:
                await anyio.sleep(0.5)  # its node is not the one that leads
                return await sure_end(*arguments)

            monkeypatch.setattr(nats_stream, "sure_end", late_sure_end)
            line.slow(0.15)
            line.heal()
            again = Server(urls[0], file, "n1")
            async with again.running():
                await again.until(lambda: again.engine.attached and not again.replica.covers)
                assert off_s(again, right) < 2.0
                assert [again.replica.values[path] for path in paths] == [b"\x03"] * len(paths)


async def test_a_server_with_a_wrong_date_forgets_no_deletion_too_early(
    tmp_path: pathlib.Path, own_node: nats.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 10 * 365 * 86_400)
    server = Server(f"nats://{own_node.address}/house", tmp_path / "copy.sqlite", "n1")
    async with server.running():
        await server.set(A, b"\x01")
        gone = await server.set(A, None)
        assert abs(gone.at - right()) < 60
        assert await server.engine.compact() == 0
        assert server.engine.now() < right() + 60


async def test_a_node_that_led_until_lately_is_not_believed(
    tmp_path: pathlib.Path, own_node: nats.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just after a split it answers for the stream as it knows it."""
    server = Server(f"nats://{own_node.address}/house", tmp_path / "copy.sqlite", "n1")
    look = nats_stream.look_with_floor

    async def behind(*arguments: Any) -> tuple[nats_stream.Facts, int]:
        facts, floor = await look(*arguments)
        return dataclasses.replace(facts, revision=facts.revision - 2), floor

    async with server.running():
        for value in (b"\x01", b"\x02", b"\x03"):
            await server.set(A, value)
        epoch = server.engine.epoch
        monkeypatch.setattr(nats_stream, "look_with_floor", behind)
        assert server.remote._connection is not None
        server.remote._connection.lost.set()
        await server.set(A, b"\x04")
        await server.until(lambda: server.engine.attached and not server.replica.covers)
        assert server.engine.epoch == epoch
        history = await server.engine.history(A, limit=9)
        assert [record.value for record in history] == [b"\x04", b"\x03", b"\x02", b"\x01"]


async def test_another_connection_is_no_outage(
    tmp_path: pathlib.Path,
    own_node: nats.Node,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nats_touch, "DETACH_S", 15.0)  # a busy machine is one neither
    server = Server(f"nats://{own_node.address}/house", tmp_path / "copy.sqlite", "n1")
    async with server.running():
        rev = 0
        for number in range(3):
            await server.until(lambda: server.remote._connection is not None)
            assert server.remote._connection is not None
            server.remote._connection.lost.set()
            rev = (await server.writer.set(B, bytes([number]), expect=rev)).rev
        assert server.engine.attached
    assert "cut off" not in caplog.text


async def test_what_was_deleted_and_forgotten_meanwhile_goes_whatever_a_node_says(
    tmp_path: pathlib.Path, own_node: nats.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"nats://{own_node.address}/house"
    away = Server(url, tmp_path / "away.sqlite", "n1")
    async with away.running():
        await away.set(A, b"\x01")
    other = nats_engine.NatsEngine(url, tombstone_s=0.0)
    async with other.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(other)
        writer._tick = 100
        await writer.set(A, None)
        assert await other.compact() > 1
        await writer.set(B, b"\x02")
    look = nats_stream.look_with_floor

    async def not_told(*arguments: Any) -> tuple[nats_stream.Facts, int]:
        return (await look(*arguments))[0], 0

    monkeypatch.setattr(nats_stream, "look_with_floor", not_told)
    again = Server(url, tmp_path / "away.sqlite", "n1")
    async with again.running():
        await again.until(lambda: again.engine.attached)
        assert again.replica.values == {B: b"\x02"}
