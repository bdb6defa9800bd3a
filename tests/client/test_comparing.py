"""Two servers are compared by hashes: equal, or where not, with few requests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from moat_kv import Client, errors, open_client
from moat_kv.client import comparing
from moat_kv.entry import Record
from moat_kv.path import P, Path
from moat_kv.server.server import Server
from moat_kv.testing.server import running_server
from moat_kv.tree import hashing
from tests.client.waiting import until

pytestmark = pytest.mark.anyio


def record(rev: int, path: Path, value: bytes | None = b"\x01") -> Record:
    return Record(rev, path, value, rev / 8, "n1:00", rev)


@asynccontextmanager
async def two_servers() -> AsyncIterator[tuple[list[Server], list[Client]]]:
    """Two servers, to be given records by hand as a network would, and a client of each."""
    async with AsyncExitStack() as stack:
        servers, clients = [], []
        for name in ("n1", "n2"):
            running = await stack.enter_async_context(running_server(name))
            running.server.engine.epoch = "the same"
            servers.append(running.server)
            clients.append(await stack.enter_async_context(open_client(running.url)))
        yield servers, clients


def apply(servers: Sequence[Server], *records: Record) -> None:
    for server in servers:
        server.store.apply(records)


def count_requests(server: Server) -> list[str]:
    """The paths of the hashes that are asked for from now on."""
    asked: list[str] = []
    action = server.actions["hash"]

    def handler(connection: object, request: object) -> None:
        asked.append(str(request.arguments["path"]))  # type: ignore[attr-defined]
        action.handler(connection, request)  # type: ignore[arg-type]

    server.actions["hash"] = action._replace(handler=handler)
    return asked


async def differing(clients: Sequence[Client], path: Path) -> list[Path]:
    return [each.path for each in await comparing.differences(clients, path)]


async def test_equal_servers_take_one_request_each() -> None:
    async with two_servers() as (servers, clients):
        apply(servers, *(record(n, Path("a", n % 7, n)) for n in range(1, 400)))
        asked = count_requests(servers[0])
        one, two = await comparing.hash_all(clients, Path())
        assert one.total == two.total
        assert (one.total.entries, one.rev) == (399, 399)
        assert await differing(clients, Path()) == []
        assert len(asked) == 2


async def test_what_differs_is_found_whatever_the_difference() -> None:
    async with two_servers() as (servers, clients):
        apply(servers, *(record(n, Path("a", n % 7, n)) for n in range(1, 400)))
        apply(servers[:1], record(400, P("a:5")), record(401, P("x.y")), record(402, P("v")))
        apply(servers[1:], record(401, P("a:3:3"), None), record(402, P("v"), b"\x02"))
        found = await differing(clients, Path())
        assert sorted(found) == [P("a:3:3"), P("a:5"), P("v"), P("x.y")]
        assert sorted(await differing(clients, P("a"))) == [P("a:3:3"), P("a:5")]
        assert await differing(clients, P("a:4")) == []


async def test_one_among_very_many_is_found_with_few_requests() -> None:
    async with two_servers() as (servers, clients):
        count = 30_000
        apply(servers, *(record(n, Path("wide", f"name {n}")) for n in range(1, count)))
        odd = Path("wide", "name 4711")
        apply(servers, record(count, Path("last")))
        node = servers[1].store.tree.find(odd)
        assert node is not None
        node.value = b"\x02"  # damage that nothing has told of
        asked = count_requests(servers[1])
        assert await differing(clients, Path()) == [odd]
        assert len(asked) <= 5


async def test_a_server_with_few_children_is_compared_with_one_that_has_many_dead_ones() -> None:
    async with two_servers() as (servers, clients):
        many = hashing.CHILDREN_LIMIT + 10
        dead = [record(n, Path("d", n)) for n in range(1, many)]
        dead += [record(many + n, Path("d", n), None) for n in range(5, many)]
        apply(servers, *dead)
        servers[0].store.compacted(2 * many)
        assert await differing(clients, Path()) == []
        apply(servers[:1], record(3 * many, Path("d", 1), b"\x07"))
        apply(servers[1:], record(3 * many, Path("d", 2), b"\x07"))
        assert sorted(await differing(clients, Path())) == [Path("d", 1), Path("d", 2)]


async def test_system_data_that_differs_is_told_as_a_whole() -> None:
    async with two_servers() as (servers, clients):
        apply(servers, record(1, P("a")))
        apply(servers[:1], record(2, Path(None, "session", "s")))
        apply(servers[1:], record(2, Path(None, "session", "t")))
        assert await differing(clients, Path()) == [Path(None)]
        with pytest.raises(errors.BadPath):
            await clients[0].hash(Path(None, "session"))


async def test_servers_that_are_written_to_are_compared_at_one_revision() -> None:
    async with two_servers() as (servers, clients):
        count = 3_000
        records = [record(n, Path("a", n % 11, n)) for n in range(1, count)]
        apply(servers, *records)
        rev = count

        async def write() -> None:
            """To both, the second one a little later."""
            nonlocal rev
            late: list[Record] = []
            while True:
                fresh = [record(rev + n, Path("a", n, (rev * 7 + n) % count)) for n in range(3)]
                rev += 3
                apply(servers[:1], *fresh)
                apply(servers[1:], *late)
                late = fresh
                await anyio.sleep(0.001)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            for _ in range(5):
                await anyio.sleep(0.01)
                one, two = await comparing.hash_all(clients, P("a"))
                assert one.rev == two.rev
                assert one.total == two.total
                assert one.children == two.children
            tasks.cancel_scope.cancel()
        assert servers[0].store.snapshots == servers[1].store.snapshots == []


async def test_who_lags_is_waited_for_no_longer_than_it_takes() -> None:
    async with two_servers() as (servers, clients):
        apply(servers, record(1, P("a")))
        apply(servers[:1], record(2, P("a")))
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:

            async def catch_up() -> None:
                while not servers[1].store.snapshots:
                    await anyio.sleep(0.001)
                apply(servers[1:], record(2, P("a")))

            tasks.start_soon(catch_up)
            one, two = await comparing.hash_all(clients, Path())
        assert (one.rev, two.rev) == (2, 2)
        assert one.total == two.total
        assert anyio.current_time() - began < comparing.WAIT_S


async def test_servers_that_never_meet_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "WAIT_S", 0.01)
    async with two_servers() as (servers, clients):
        apply(servers, record(1, P("a")))
        apply(servers[:1], record(2, P("a")))
        with pytest.raises(errors.Behind) as caught:
            await comparing.hash_all(clients, Path())
        assert (caught.value.have, caught.value.want) == (1, 2)


async def test_others_are_served_while_a_large_tree_is_hashed() -> None:
    async with running_server() as running, AsyncExitStack() as stack:
        apply([running.server], *(record(n, Path("a", n % 50, n)) for n in range(1, 100_001)))
        one, two = [await stack.enter_async_context(open_client(running.url)) for _ in range(2)]
        slowest_s, count, is_done = 0.0, 0, False

        async def get() -> None:
            nonlocal slowest_s, count
            while not is_done:
                # Of this thread's own time: the machine may have other things to do.
                began_s = time.thread_time()
                await two.ping()
                slowest_s = max(slowest_s, time.thread_time() - began_s)
                count += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            with anyio.fail_after(30):
                found = await one.hash(Path())
            is_done = True
        assert found.total.entries == 100_000
        assert count > 20
        assert slowest_s < 1.0


async def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    async with two_servers() as (servers, clients), anyio.create_task_group() as tasks:
        apply(servers, record(1, P("a")))

        async def ask() -> None:
            await clients[0].hash(Path(), rev=99, wait_s=60)

        tasks.start_soon(ask)
        await until(lambda: servers[0].store.snapshots)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await until(lambda: not servers[0].store.snapshots)


@pytest.mark.parametrize(
    "wrong", [{"rev": -1}, {"rev": 1, "wait_s": 61.0}, {"prefix": b"12345"}], ids=str
)
async def test_what_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    async with two_servers() as (_servers, clients):
        with pytest.raises(errors.BadArguments):
            await clients[0].hash(Path(), **wrong)  # type: ignore[arg-type]
