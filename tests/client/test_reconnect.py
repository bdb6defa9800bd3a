"""Breaks of the line: what is repeated, what is refused, what is not known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv import Client, P, errors, open_client
from moat_kv.testing.server import RunningServer, running_server
from tests.client.proxy import Proxy, port_of, proxied
from tests.client.waiting import take, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def breakable(**options: Any) -> AsyncIterator[tuple[RunningServer, Proxy, Client]]:
    """A server, and a client that reaches it through a proxy."""
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(proxy.url, **options) as client,
    ):
        yield running, proxy, client


class Attempt:
    """A call in a task of its own."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.result: Any = None
        self.error: Exception | None = None

    async def run(self, function: Any, *args: Any, **kwargs: Any) -> None:
        try:
            self.result = await function(*args, **kwargs)
        except Exception as exc:
            self.error = exc
        self.done.set()

    async def outcome(self) -> Any:
        with anyio.fail_after(30):
            await self.done.wait()
        return self.error if self.error is not None else self.result


async def test_reads_in_flight_are_repeated_on_the_next_line() -> None:
    async with breakable() as (_, proxy, client):
        await client.set(P("a"), 1)
        await client.set(P("a.b"), 2)
        proxy.hold_answers()

        async def tree() -> list[Any]:
            return [row.value async for row in client.get_tree(P("a"))]

        calls: list[Any] = [
            lambda: client.get(P("a")),
            lambda: client.list(P("a")),
            lambda: client.history(P("a")),
            client.ping,
            client.state,
            tree,
        ]
        async with anyio.create_task_group() as tasks:
            attempts = [Attempt() for _ in calls]
            for attempt, call in zip(attempts, calls, strict=True):
                tasks.start_soon(attempt.run, call)
            await anyio.sleep(0.05)
            assert not any(attempt.done.is_set() for attempt in attempts)
            await proxy.cut()
            proxy.release_answers()
            got, listed, history, _, _, rows = [await each.outcome() for each in attempts]
        assert got.value == 1
        assert [one.name for one in listed] == ["b"]
        assert [one.value for one in history] == [1]
        assert rows == [1, 2]
        assert proxy.lines == 2


async def test_a_write_in_flight_is_not_repeated_and_may_have_happened() -> None:
    async with breakable() as (running, proxy, client), anyio.create_task_group() as tasks:
        proxy.hold_answers()
        calls: list[Any] = [
            lambda: client.set(P("a"), 1),
            lambda: client.delete(P("b")),
            lambda: client.batch([client.op_set(P("c"), 1)]),
            lambda: client.patch(P("n"), "add", 1),
            lambda: client.delete_tree(P("d")),
            lambda: client.send(P("t"), 1),
        ]
        attempts = [Attempt() for _ in calls]
        for attempt, call in zip(attempts, calls, strict=True):
            tasks.start_soon(attempt.run, call)
        await until(lambda: running.server.engine.revision >= 3)
        await proxy.cut()
        for attempt in attempts:
            assert isinstance(await attempt.outcome(), errors.Unknown)
        proxy.release_answers()
        assert (await client.get(P("n"))).value == 1
        assert (await client.get(P("a"))).rev > 0


async def test_a_lone_write_in_flight_may_have_happened() -> None:
    async with breakable() as (running, proxy, client), anyio.create_task_group() as tasks:
        proxy.hold_answers()
        attempt = Attempt()
        tasks.start_soon(attempt.run, client.set, P("a"), 1)
        await until(lambda: running.server.engine.revision == 1)
        await proxy.cut()
        assert isinstance(await attempt.outcome(), errors.Unknown)
        proxy.release_answers()


async def test_a_write_without_a_line_is_refused_at_once_and_works_again_later() -> None:
    async with breakable() as (_, proxy, client):
        changes: list[bool] = []
        forget = client.add_connection_listener(changes.append)
        await proxy.cut(refuse=True)
        await until(lambda: not client.connected)
        with pytest.raises(errors.Disconnected):
            await client.set(P("a"), 1)
        proxy.accept()
        await until(lambda: client.connected)
        assert (await client.set(P("a"), 1)).rev == 1
        assert changes == [False, True]
        forget()
        forget()
        await proxy.cut()
        await until(lambda: proxy.lines == 3 and client.connected)
        assert changes == [False, True]


async def test_a_read_without_a_line_fails_when_its_time_is_over() -> None:
    async with breakable(request_timeout_s=0.3) as (_, proxy, client):
        await proxy.cut(refuse=True)
        await until(lambda: not client.connected)
        for read in (client.get(P("a")), client.list(P("a"))):
            with pytest.raises(errors.Disconnected, match=r"tcp://127.0.0.1"):
                await read


async def test_a_read_without_a_line_waits_for_one() -> None:
    async with breakable() as (_, proxy, client):
        await client.set(P("a"), 1)
        await proxy.cut(refuse=True)
        await until(lambda: not client.connected)
        async with anyio.create_task_group() as tasks:
            attempt = Attempt()
            tasks.start_soon(attempt.run, client.get, P("a"))
            await anyio.sleep(0.05)
            proxy.accept()
            assert (await attempt.outcome()).value == 1


async def test_requests_that_are_never_answered_end_in_time() -> None:
    async with breakable(request_timeout_s=0.3) as (_, proxy, client):
        proxy.hold_answers()
        with pytest.raises(errors.RequestTimeout) as caught:
            await client.get(P("a"))
        assert caught.value.timeout_s == 0.3
        with pytest.raises(errors.Unknown, match=r"no answer to set within 0.3 s"):
            await client.set(P("a"), 1)
        with pytest.raises(errors.RequestTimeout):
            await client.list(P("a"))
        proxy.release_answers()
        assert (await patient(client.get, P("a"))).value == 1


async def patient(read: Any, *args: Any) -> Any:
    """A read whose time limit is so short that a busy machine exceeds it now and then."""
    with anyio.fail_after(30):
        while True:
            try:
                return await read(*args)
            except errors.RequestTimeout:
                continue


async def test_get_tree_that_breaks_after_the_first_rows_says_so() -> None:
    async with breakable() as (_, proxy, client):
        for start in range(0, 6000, 500):
            await client.batch(
                [client.op_set(P("t") / n, "x" * 1000) for n in range(start, start + 500)]
            )
        rows = client.get_tree(P("t"))
        await rows.__anext__()
        proxy.hold_answers()
        await proxy.cut()
        proxy.release_answers()
        with pytest.raises(errors.Disconnected, match="in the middle of the answer to get_tree"):
            async for _ in rows:
                pass


async def test_without_reconnecting_a_break_ends_everything() -> None:
    async with breakable(reconnect=False) as (_, proxy, client):
        async with client.watch(P("a")) as watch, client.watch_group(P("g")) as group:
            await take(group)
            await proxy.cut()
            with pytest.raises(errors.Disconnected, match="switched off"):
                await take(watch)
            assert await take(group) == [None]
            with pytest.raises(errors.Disconnected):
                await take(group)
        with pytest.raises(errors.Disconnected):
            await client.get(P("a"))
        assert proxy.lines == 1


async def test_several_servers_are_tried_in_turn() -> None:
    async with (
        running_server("one", tcp=True) as one,
        running_server("two", tcp=True) as two,
        proxied(None) as nobody,
        proxied(one.url) as first,
        open_client([nobody.url, first.url, two.url]) as client,
    ):
        assert client.server.node == "one"
        await first.cut(refuse=True)
        await until(lambda: client.connected and client.server.node == "two")
        assert client.server.url == two.url


async def test_nobody_answering_is_an_error_that_names_each_server() -> None:
    async with proxied(None) as one, proxied(None) as two:
        with pytest.raises(errors.CannotConnect) as caught:
            async with open_client([one.url, two.url]):
                raise AssertionError("connected")
        assert one.url in str(caught.value)
        assert two.url in str(caught.value)
        with pytest.raises(errors.CannotConnect):
            async with open_client(one.url, wait=True, connect_timeout_s=0.3):
                raise AssertionError("connected")
        with pytest.raises(errors.BadConfig, match="above 0"):
            async with open_client(one.url, connect_timeout_s=0):
                raise AssertionError("connected")


async def test_a_client_may_wait_for_its_first_server() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(None) as proxy,
        anyio.create_task_group() as tasks,
    ):

        async def come_late() -> None:
            await anyio.sleep(0.2)
            proxy.target = port_of(running.url)

        tasks.start_soon(come_late)
        async with open_client(proxy.url, wait=True, connect_timeout_s=30) as client:
            assert client.connected


async def test_a_peer_that_never_greets_costs_the_connecting_its_time_only() -> None:
    async def silent(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, silent)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with anyio.fail_after(30), pytest.raises(errors.CannotConnect, match=r"within 0.3 s"):
            async with open_client(f"tcp://127.0.0.1:{port}", connect_timeout_s=0.3):
                raise AssertionError("connected")
        tasks.cancel_scope.cancel()


async def test_a_client_can_be_closed_while_it_looks_for_a_server() -> None:
    async with breakable(connect_timeout_s=60) as (_, proxy, client):
        await proxy.cut(refuse=True)
        await until(lambda: not client.connected)
        began = anyio.current_time()
    assert anyio.current_time() - began < 30  # far below the time limit of connecting


async def test_a_listener_that_fails_takes_the_line_from_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def bad(connected: bool) -> None:
        raise LookupError("mine")

    async with breakable() as (_, proxy, client):
        client.add_connection_listener(bad)
        await proxy.cut()
        await until(lambda: proxy.lines == 2 and client.connected)
        await client.set(P("a"), 1)
    assert "a listener to the connection failed" in caplog.text
