"""What a client says on its next line, to servers that the test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv import P, Ready, errors, open_client
from moat_kv.proto import messages
from moat_kv.proto.messages import State
from tests.client.peer import Peer
from tests.client.waiting import take, until

pytestmark = pytest.mark.anyio


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
