"""One line: streams, pausing for a slow consumer, and sending past the writer."""

from __future__ import annotations

import socket

import anyio
import anyio.abc
import pytest

from moat_kv import errors
from moat_kv.client import connection, handshake
from moat_kv.proto import frames, messages
from moat_kv.proto.messages import State
from tests.client.peer import Outcome, Peer, StreamLog, connected
from tests.client.waiting import until

pytestmark = pytest.mark.anyio


async def test_a_stream_is_told_its_start_its_parts_and_its_end() -> None:
    async with connected() as ends:
        stream = StreamLog()
        ends.line.open_stream(stream, "list", {})
        seq = (await ends.peer.request("list")).seq
        await ends.peer.reply(seq, state=State.START)
        await ends.peer.reply(seq, {"rows": [1]}, state=State.ITEM)
        await ends.peer.reply(seq, state=State.END)
        assert await stream.wait_for(3) == ["started", {"rows": [1]}, ("ended", None)]
        failing = StreamLog()
        ends.line.open_stream(failing, "watch", {})
        seq = (await ends.peer.request("watch")).seq
        error = messages.error_fields(errors.BadPath("x", "no"))
        await ends.peer.reply(seq, error, state=State.ERROR)
        told = await failing.wait_for(1)
        assert isinstance(told[0][1], errors.BadPath)
        assert not ends.line._streams


async def test_a_stopped_stream_is_stopped_at_the_server_and_told_nothing_more() -> None:
    async with connected() as ends:
        stream = StreamLog()
        seq = ends.line.open_stream(stream, "watch", {})
        await ends.peer.request("watch")
        ends.line.stop_stream(seq)
        ends.line.stop_stream(seq)
        assert (await ends.peer.request("stop")).arguments == {"seq": seq}
        await ends.peer.reply(seq, {"rows": [1]}, state=State.ITEM)
        await ends.peer.reply(seq, state=State.END)
        await anyio.wait_all_tasks_blocked()
        assert stream.told == []
        assert not ends.breaks


async def test_a_stream_that_was_not_asked_for_yet_needs_no_stop() -> None:
    async with connected(capacity=1) as ends:
        others = [StreamLog() for _ in range(3)]
        for other in others:
            ends.line.open_stream(other, "watch", {})
            await anyio.wait_all_tasks_blocked()
        ends.line.stop_stream(ends.line.open_stream(StreamLog(), "list", {}))
        for _ in others:
            await ends.peer.request("watch")
        await anyio.wait_all_tasks_blocked()
        assert not ends.line._outgoing


async def test_reading_pauses_for_a_lagging_answer_until_something_else_is_asked() -> None:
    async with connected() as ends, anyio.create_task_group() as tasks:
        stream = StreamLog()
        seq = ends.line.open_stream(stream, "get_tree", {})
        await ends.peer.request("get_tree")
        stream.lagging = True
        await ends.peer.reply(seq, {"n": 1}, state=State.ITEM)
        await anyio.wait_all_tasks_blocked()
        await ends.peer.reply(seq, {"n": 2}, state=State.ITEM)
        await anyio.wait_all_tasks_blocked()
        assert stream.told == [{"n": 1}]
        call = Outcome()
        tasks.start_soon(call.run, ends.line, "get", {})
        request = await ends.peer.request("get")
        await ends.peer.reply(request.seq)
        await anyio.wait_all_tasks_blocked()
        assert call.reply is not None
        assert stream.told == [{"n": 1}, {"n": 2}]
        await ends.peer.reply(seq, {"n": 3}, state=State.ITEM)
        await anyio.wait_all_tasks_blocked()
        assert len(stream.told) == 2
        stream.lagging = False
        ends.line.caught_up()
        await stream.wait_for(3)


async def test_reading_goes_on_for_a_lagging_answer_beside_a_watch() -> None:
    async with connected() as ends:
        stream, watch = StreamLog(), StreamLog()
        seq = ends.line.open_stream(stream, "get_tree", {})
        other = ends.line.open_stream(watch, "watch", {})
        stream.lagging = True
        for number in range(5):
            await ends.peer.reply(seq, {"n": number}, state=State.ITEM)
        await ends.peer.reply(other, {"mark": 3}, state=State.ITEM)
        assert await watch.wait_for(1) == [{"mark": 3}]
        assert len(stream.told) == 5


async def test_streams_are_told_of_a_break() -> None:
    async with connected() as ends:
        stream = StreamLog()
        ends.line.open_stream(stream, "watch", {})
        await ends.peer.request("watch")
        await ends.peer.stream.aclose()
        assert await stream.wait_for(1) == [("interrupted", "the server closed the line")]


# A socket: direct sending -----------------------------------------------------------------------


async def test_a_frame_that_fills_the_socket_arrives_whole_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    stream = await anyio.abc.SocketStream.from_socket(ours)
    peer = Peer(await anyio.abc.SocketStream.from_socket(theirs))
    async with connected() as memory:
        server = memory.line.server
    line = connection.Connection(
        handshake.Line(stream, frames.FrameReader(), server),
        request_timeout_s=60,
        on_broken=lambda _line, _reason: None,
    )
    sizes = [10, 900_000, 20, 500_000, 30]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(line.run)
        await anyio.wait_all_tasks_blocked()
        calls = [Outcome() for _ in sizes]
        for number, (call, size) in enumerate(zip(calls, sizes, strict=True)):
            value = bytes([number]) * size
            tasks.start_soon(call.run, line, "set", {"n": number}, value)
            await anyio.wait_all_tasks_blocked()
        assert line._direct is not None
        calls[1].scope.cancel()
        await anyio.wait_all_tasks_blocked()
        for number, size in enumerate(sizes):
            request = await peer.request("set")
            assert request.arguments == {"n": number}
            assert request.value == bytes([number]) * size
            await peer.reply(request.seq)
        # What is in the socket yet wakes nobody: the last answer has to be waited for.
        await until(lambda: calls[-1].reply)
        assert [bool(call.reply) for call in calls] == [True, False, True, True, True]
        line.close("the test is over")
    await peer.stream.aclose()
