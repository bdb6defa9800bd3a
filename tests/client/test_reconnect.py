"""Breaks of the line: what is repeated, what is refused, what is not known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv import Client, P, Ready, errors, open_client
from moat_kv.proto import messages
from moat_kv.proto.messages import State
from moat_kv.testing.server import RunningServer, running_server
from tests.client.peer import Peer
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
        assert (await client.get(P("a"))).value == 1


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
        async with open_client(proxy.url, wait=True, connect_timeout_s=5) as client:
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
        with anyio.fail_after(8), pytest.raises(errors.CannotConnect, match=r"within 0.3 s"):
            async with open_client(f"tcp://127.0.0.1:{port}", connect_timeout_s=0.3):
                raise AssertionError("connected")
        tasks.cancel_scope.cancel()


async def test_a_client_can_be_closed_while_it_looks_for_a_server() -> None:
    async with breakable() as (_, proxy, client):
        await proxy.cut(refuse=True)
        await until(lambda: not client.connected)
        began = anyio.current_time()
    assert anyio.current_time() - began < 8  # the time limit of connecting is 10 s


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


# Scripted servers -------------------------------------------------------------------------------


class Script:
    """A server that plays a part on each line in turn."""

    def __init__(self, *parts: Any) -> None:
        self._parts = list(parts)
        self.hellos: list[dict[str, Any]] = []

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        async with stream:
            if self._parts:
                try:
                    await self._parts.pop(0)(self, Peer(stream))
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return

    async def greet(self, peer: Peer, **changes: Any) -> None:
        await peer.greet(**changes)
        self.hellos.append((await peer.answer_hello()).arguments)


@asynccontextmanager
async def scripted(*parts: Any) -> AsyncIterator[tuple[Script, str]]:
    script = Script(*parts)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, script.serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        yield script, f"tcp://127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


async def test_hello_tells_the_highest_revision_seen_and_a_server_behind_is_passed_by() -> None:
    async def write_and_break(script: Script, peer: Peer) -> None:
        await script.greet(peer)
        request = await peer.request("set")
        await peer.reply(request.seq, {"rev": 40, "at": 1.0, "id": "x"})
        request = await peer.request("get")
        await peer.reply(request.seq, {"rev": 12, "at": 1.0, "id": "x"}, b"\x01")

    async def be_behind(script: Script, peer: Peer) -> None:
        await peer.greet()
        request = await peer.request("hello")
        script.hellos.append(request.arguments)
        error = messages.error_fields(errors.Behind(7, 40))
        await peer.reply(request.seq, error, state=State.ERROR)

    async def be_new(script: Script, peer: Peer) -> None:
        await script.greet(peer, epoch="two")

    async def be_there(script: Script, peer: Peer) -> None:
        await script.greet(peer, epoch="two", node="last")
        await peer.request("never")

    async with (
        scripted(write_and_break, be_behind, be_new, be_there) as (script, url),
        open_client(url, name="me") as client,
    ):
        await client.set(P("a"), 1)
        await client.get(P("b"))
        await until(lambda: client.connected and client.server.node == "last")
    assert script.hellos == [
        {"client": "me", "seen": 0, "epoch": "one"},
        {"client": "me", "seen": 40, "epoch": "one"},
        {"client": "me", "seen": 0, "epoch": "two"},
        {"client": "me", "seen": 0, "epoch": "two"},
    ]


async def test_a_watch_resumes_from_its_mark_and_a_new_epoch_is_answered_with_a_reset() -> None:
    asked: list[dict[str, Any]] = []

    async def tell_some(script: Script, peer: Peer) -> None:
        await script.greet(peer)
        request = await peer.request("watch")
        asked.append(request.arguments)
        await peer.reply(request.seq, {"rev": 7}, state=State.START)
        row = [P("a"), b"\x01", 5, 1.0, "x"]
        await peer.reply(request.seq, {"rows": [row], "ready": True}, state=State.ITEM)
        row = [P("a.b"), b"\x02", 9, 1.0, "x"]
        await peer.reply(request.seq, {"rows": [row], "mark": 9}, state=State.ITEM)

    async def tell_more(script: Script, peer: Peer) -> None:
        await script.greet(peer)
        request = await peer.request("watch")
        asked.append(request.arguments)
        await peer.reply(request.seq, {"rev": 12}, state=State.START)
        await peer.reply(request.seq, {"rows": [], "ready": True}, state=State.ITEM)

    async def start_anew(script: Script, peer: Peer) -> None:
        await script.greet(peer, epoch="two")
        request = await peer.request("watch")
        asked.append(request.arguments)
        await peer.reply(request.seq, {"rev": 1}, state=State.START)
        await peer.reply(request.seq, {"reset": "another epoch"}, state=State.ITEM)
        row = [P("a.c"), b"\x03", 1, 1.0, "x"]
        await peer.reply(request.seq, {"rows": [row], "ready": True}, state=State.ITEM)
        await peer.request("stop")

    async with (
        scripted(tell_some, tell_more, start_anew) as (_, url),
        open_client(url) as client,
        client.watch(P("a"), fetch=True) as watch,
    ):
        events = await take(watch, 6)
        kinds = [type(event).__name__ for event in events]
        assert kinds == ["WatchEvent", "Ready", "WatchEvent", "Reset", "WatchEvent", "Ready"]
        assert [events[n].value for n in (0, 2, 4)] == [1, 2, 3]
        assert events[3].reason == "another epoch"
        assert events[4].chain != events[0].chain
    assert asked == [
        {"path": P("a"), "fetch": True},
        {"path": P("a"), "since": ["one", 9]},
        {"path": P("a"), "since": ["one", 12]},
    ]


async def test_a_state_that_breaks_off_is_told_anew_after_a_reset() -> None:
    async def break_off(script: Script, peer: Peer) -> None:
        await script.greet(peer)
        request = await peer.request("watch")
        await peer.reply(request.seq, {"rev": 7}, state=State.START)
        row = [P("a.gone"), b"\x01", 5, 1.0, "x"]
        await peer.reply(request.seq, {"rows": [row]}, state=State.ITEM)

    async def tell_all(script: Script, peer: Peer) -> None:
        await script.greet(peer)
        request = await peer.request("watch")
        assert request.arguments == {"path": P("a"), "fetch": True}
        await peer.reply(request.seq, {"rev": 9}, state=State.START)
        row = [P("a.there"), b"\x02", 6, 1.0, "x"]
        await peer.reply(request.seq, {"rows": [row], "ready": True}, state=State.ITEM)
        await peer.request("stop")

    async with (
        scripted(break_off, tell_all) as (_, url),
        open_client(url) as client,
        client.watch(P("a"), fetch=True) as watch,
    ):
        events = await take(watch, 1)
        while not isinstance(events[-1], Ready):
            events += await take(watch)
    kinds = [type(event).__name__ for event in events]
    assert kinds[-3:] == ["Reset", "WatchEvent", "Ready"]
    assert events[-2].path == P("a.there")
