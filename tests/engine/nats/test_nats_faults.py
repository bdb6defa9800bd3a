"""A node that dies, a line that breaks, an answer that is late: nothing acknowledged is lost."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest

from moat_kv import errors
from moat_kv.engine import base, nats
from moat_kv.entry import Record
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe
from moat_kv.testing import nats as nats_servers
from tests.client import proxy as proxies
from tests.client.waiting import until

pytestmark = pytest.mark.anyio

A, B = P("a"), P("b")


@pytest.fixture
def own_node() -> Iterator[nats_servers.Node]:
    """A node that the test may end."""
    with nats_servers.server() as node:
        yield node


@asynccontextmanager
async def opened(
    url: str, *, patience_s: float = 30.0
) -> AsyncIterator[tuple[nats.NatsEngine, engine_probe.DictReplica, engine_probe.Writer]]:
    engine = nats.NatsEngine(url, patience_s=patience_s)
    replica = engine_probe.DictReplica()
    async with engine.running(replica):
        yield engine, replica, engine_probe.Writer(engine)


@asynccontextmanager
async def behind_proxy(
    node: nats_servers.Node, network: str
) -> AsyncIterator[tuple[proxies.Proxy, str]]:
    async with proxies.proxied(f"tcp://{node.address}") as proxy:
        yield proxy, f"nats://127.0.0.1:{proxies.port_of(proxy.url)}/{network}"


async def tree_of(url: str) -> dict[Path, Record]:
    async with opened(url) as (_, replica, _writer):
        return dict(replica.heads)


async def test_a_killed_node_has_all_that_it_acknowledged(own_node: nats_servers.Node) -> None:
    url = f"nats://{own_node.address}/kill"
    acknowledged: dict[Path, Record] = {}
    unclear: set[Path] = set()
    stop = False
    async with opened(url, patience_s=20.0) as (_, replica, writer), anyio.create_task_group() as t:

        async def write(number: int) -> None:
            count = 0
            while not stop:
                count += 1
                path = Path(number, count % 40)
                group = [writer.make(path, b"%d" % count), writer.make(path / "x", b"%d" % count)]
                outcome = await writer.group(*(group if number % 2 else group[:1]))
                if isinstance(outcome, errors.MoatKvError):
                    assert isinstance(outcome, errors.Unknown)
                    unclear.add(path)
                else:
                    acknowledged.update({record.path: record for record in outcome})

        for number in range(8):
            t.start_soon(write, number)
        for _ in range(3):
            before = len(replica.applied)
            await until(lambda before=before: len(replica.applied) > before + 30)  # type: ignore[misc]
            own_node.kill()
            await anyio.to_thread.run_sync(own_node.start)
        before = len(replica.applied)
        await until(lambda: len(replica.applied) > before + 30 and len(acknowledged) > 300)
        stop = True
    assert await tree_of(url) == replica.heads
    for path, record in acknowledged.items():
        assert replica.heads[path] == record or path in unclear


async def test_a_write_whose_answer_is_lost_is_answered_and_there_once(
    node: nats_servers.Node, new_network: Callable[[], str]
) -> None:
    async with behind_proxy(node, new_network()) as (proxy, url):
        async with opened(url) as (engine, _, writer):
            await writer.set(A, b"0")
            proxy.hold_answers()
            answers = engine_probe.Answers(3)
            engine.submit((writer.make(A, b"1"),), answers.done(0))
            engine.submit((writer.make(B, b"1", expect=0),), answers.done(1))
            group = (writer.make(P("g.a"), b"1", expect=0), writer.make(P("g.b"), b"1", expect=0))
            engine.submit(group, answers.done(2))
            await until(lambda: proxy.held)
            await proxy.cut()
            proxy.release_answers()
            await answers.wait()
            outcomes = [outcome for _, outcome in answers.outcomes]
            assert not [each for each in outcomes if isinstance(each, errors.MoatKvError)]
            assert await engine_probe.all_records(engine) == [
                *await engine.history(A, limit=9, before=2),
                *[record for outcome in outcomes for record in records_of(outcome)],
            ]


def records_of(outcome: base.Outcome) -> list[Record]:
    assert not isinstance(outcome, errors.MoatKvError)
    return list(outcome)


@pytest.mark.parametrize("is_written", [True, False], ids=["written-over", "left-alone"])
async def test_a_write_that_hung_undoes_nothing(
    node: nats_servers.Node, new_network: Callable[[], str], is_written: bool
) -> None:
    """What was sent into a line that froze reaches NATS after all, much later."""
    network = new_network()
    direct = f"nats://{node.address}/{network}"
    async with behind_proxy(node, network) as (proxy, url):
        async with opened(url) as (engine, replica, writer), opened(direct) as (_, seen, other):
            await writer.set(A, b"0")
            proxy.hold_requests()
            answers = engine_probe.Answers(1)
            engine.submit((writer.make(A, b"hung"),), answers.done(0))
            await until(lambda: proxy.held)
            late = proxy.pass_what_comes()
            if is_written:
                await other.set(A, b"other")
            # The frozen line is left within seconds, and the same record sent through a new one.
            await answers.wait()
            (record,) = records_of(answers.outcomes[0][1])
            last = await other.set(A, b"last")
            late.set()
            await until(lambda: proxy.lines >= 2)
            await other.set(B, b"after")
            await writer.set(B, b"after this")
            assert [each.value for each in await engine.history(A, limit=9)] == [
                b"last",
                b"hung",
                *([b"other"] if is_written else []),
                b"0",
            ]
            assert record.rev < last.rev
            await until(lambda: replica.heads == seen.heads)


async def test_what_cannot_be_stored_in_time_is_told_apart(
    node: nats_servers.Node, new_network: Callable[[], str]
) -> None:
    async with behind_proxy(node, new_network()) as (proxy, url):
        async with opened(url) as (engine, replica, writer):
            await writer.set(A, b"0")
            # Only for what is to be too late.
            patience_s, engine._committer._patience_s = engine._committer._patience_s, 0.6
            proxy.hold_answers()
            sent = await writer.group(writer.make(A, b"sent"))
            assert isinstance(sent, errors.Unknown)
            await proxy.cut(refuse=True)
            await until(lambda: engine.describe()["server"] is None)
            unsent = await writer.group(writer.make(B, b"unsent"))
            assert isinstance(unsent, errors.Detached)
            assert engine.trouble is not None
            proxy.release_answers()
            proxy.accept()
            await until(lambda: engine.describe()["server"] is not None)
            engine._committer._patience_s = patience_s
            await writer.set(P("c"), b"1")
            assert engine.trouble is None
            # What was `Unknown` did happen here; what was `Detached` did not.
            assert replica.values == {A: b"sent", P("c"): b"1"}


async def test_writes_on_both_sides_of_an_outage_are_followed(
    node: nats_servers.Node, new_network: Callable[[], str]
) -> None:
    network = new_network()
    async with behind_proxy(node, network) as (proxy, url):
        async with opened(url) as (engine, replica, writer):
            async with opened(f"nats://{node.address}/{network}") as (_, seen, other):
                for number in range(5):
                    await writer.set(Path("w", number), b"1")
                    await proxy.cut(refuse=True)
                    await other.set(Path("o", number), b"1")
                    await other.set(Path("w", number), None)
                    proxy.accept()
                    engine.send(P("hello"), b"%d" % number)
                await until(lambda: replica.heads == seen.heads)
                assert len(replica.heads) == 10


async def test_a_log_that_lost_its_end_is_refused_and_begins_a_new_epoch(
    own_node: nats_servers.Node,
) -> None:
    url = f"nats://{own_node.address}/lost"
    async with opened(url) as (engine, _, writer):
        await writer.set(A, b"0")
        before = engine.epoch
    own_node.stop()
    store = own_node.folder / "jetstream"
    saved = own_node.folder / "saved"
    await anyio.to_thread.run_sync(copy, store, saved)
    await anyio.to_thread.run_sync(own_node.start)

    async def serve() -> None:
        async with opened(url) as (_, _replica, writer):
            await writer.set(A, b"1")
            own_node.kill()
            await anyio.to_thread.run_sync(copy, saved, store)
            await anyio.to_thread.run_sync(own_node.start)
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await serve()
    assert caught.group_contains(errors.StorageDamaged, match="ends at revision 1, and was at 2")
    async with opened(url) as (engine, replica, _writer):
        assert replica.values == {A: b"0"}
        assert engine.epoch != before


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


@pytest.fixture
def nodes() -> Iterator[Sequence[nats_servers.Node]]:
    with nats_servers.cluster(3) as nodes:
        yield nodes


async def test_strict_writes_go_on_past_a_frozen_leader(
    nodes: Sequence[nats_servers.Node],
) -> None:
    url = f"nats://{','.join(node.address for node in nodes)}/frozen"
    async with opened(url, patience_s=30.0) as (engine, replica, writer):
        assert engine.describe()["replicas"] == 3
        first = await writer.set(A, b"0", expect=0)
        leader = nats_servers.leader(nodes, "moat-frozen")
        leader.freeze()
        try:
            second = await strict(engine, writer, b"1", first.rev)
        finally:
            leader.thaw()
        # The thawed node may refuse what the new leader stores.
        third = await strict(engine, writer, b"2", second.rev)
        await anyio.to_thread.run_sync(nats_servers.wait_for_all, nodes)
        assert await engine.history(A, limit=9) == [third, second, first]
        assert replica.heads == {A: third}


async def strict(
    engine: nats.NatsEngine, writer: engine_probe.Writer, value: bytes, expect: int
) -> Record:
    """One write, for which a new leader may have to be found first."""
    answers = engine_probe.Answers(1)
    engine.submit((writer.make(A, value, expect=expect),), answers.done(0))
    await answers.wait()
    (record,) = records_of(answers.outcomes[0][1])
    return record
