"""One line: matching of answers, cancelled callers, breaks, time limits, slow consumers."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import anyio.abc
import pytest
import trio
import trio.testing

from moat_kv import errors
from moat_kv.client import connection, handshake
from moat_kv.path import P
from moat_kv.proto import frames, messages
from moat_kv.proto.messages import State
from tests.client.peer import GREETING, Peer, StreamLog, connected, memory_line

pytestmark = pytest.mark.anyio


class Outcome:
    """What became of a call in a task of its own."""

    def __init__(self) -> None:
        self.reply: messages.Reply | None = None
        self.error: Exception | None = None
        self.scope = anyio.CancelScope()
        self.cancelled = False

    async def run(self, line: connection.Connection, *args: Any) -> None:
        with self.scope:
            try:
                self.reply = await line.call(*args)
            except Exception as exc:
                self.error = exc
        self.cancelled = self.scope.cancelled_caught


async def test_answers_in_any_order_find_their_callers() -> None:
    async with connected() as ends, anyio.create_task_group() as tasks:
        calls = [Outcome() for _ in range(50)]
        for number, call in enumerate(calls):
            tasks.start_soon(call.run, ends.line, "get", {"n": number})
        asked = [await ends.peer.request("get") for _ in calls]
        for request in reversed(asked):
            await ends.peer.reply(request.seq, {"got": request.arguments["n"]})
        await anyio.wait_all_tasks_blocked()
        found = [call.reply.fields["got"] if call.reply else None for call in calls]
        assert found == list(range(50))


async def test_what_gathers_while_the_line_is_busy_leaves_at_once() -> None:
    async with connected(capacity=1) as ends, anyio.create_task_group() as tasks:
        calls = [Outcome() for _ in range(100)]
        for call in calls:
            tasks.start_soon(call.run, ends.line, "get", {})
        await anyio.wait_all_tasks_blocked()
        for _ in calls:
            request = await ends.peer.request("get")
            await ends.peer.reply(request.seq)
        await anyio.wait_all_tasks_blocked()
        assert all(call.reply for call in calls)
        assert ends.stream.chunks_sent <= 3


async def test_an_error_is_raised_where_it_was_asked_for() -> None:
    async with connected() as ends, anyio.create_task_group() as tasks:
        call, other = Outcome(), Outcome()
        tasks.start_soon(call.run, ends.line, "set", {})
        request = await ends.peer.request()
        tasks.start_soon(other.run, ends.line, "get", {})
        error = errors.Conflict("a.b", 1, 2)
        await ends.peer.reply(request.seq, messages.error_fields(error), state=State.ERROR)
        await anyio.wait_all_tasks_blocked()
        assert isinstance(call.error, errors.Conflict)
        assert call.error.have == 2
        assert other.error is None
        other.scope.cancel()


async def test_a_cancelled_callers_frame_is_taken_back_if_it_has_not_left() -> None:
    async with connected(capacity=1) as ends, anyio.create_task_group() as tasks:
        calls = [Outcome() for _ in range(5)]
        for number, call in enumerate(calls):
            tasks.start_soon(call.run, ends.line, "set", {"n": number})
            await anyio.wait_all_tasks_blocked()
        calls[3].scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert calls[3].cancelled
        came = []
        for _ in range(4):
            request = await ends.peer.request("set")
            came.append(request.arguments["n"])
            await ends.peer.reply(request.seq)
        assert came == [0, 1, 2, 4]
        await anyio.wait_all_tasks_blocked()
        assert [bool(call.reply) for call in calls] == [True, True, True, False, True]


async def test_the_late_answer_to_a_cancelled_caller_is_dropped() -> None:
    async with connected() as ends, anyio.create_task_group() as tasks:
        call, other = Outcome(), Outcome()
        tasks.start_soon(call.run, ends.line, "get", {})
        request = await ends.peer.request("get")
        call.scope.cancel()
        await anyio.wait_all_tasks_blocked()
        await ends.peer.reply(request.seq, {"late": True})
        tasks.start_soon(other.run, ends.line, "get", {})
        request = await ends.peer.request("get")
        await ends.peer.reply(request.seq, {"late": False})
        await anyio.wait_all_tasks_blocked()
        assert call.reply is None
        assert other.reply is not None
        assert other.reply.fields == {"late": False}


async def test_callers_that_are_cancelled_all_the_time_leave_nothing_behind() -> None:
    async with connected(capacity=1) as ends:
        for _ in range(300):
            with anyio.move_on_after(0):
                await ends.line.call("get", {"path": P("a.b")})
        await anyio.wait_all_tasks_blocked()
        assert not ends.line._calls
        assert len(ends.line._outgoing) <= 1


async def test_a_break_tells_what_may_have_been_sent() -> None:
    async with connected(capacity=1) as ends, anyio.create_task_group() as tasks:
        calls = [Outcome() for _ in range(4)]
        for call in calls:
            tasks.start_soon(call.run, ends.line, "set", {})
            await anyio.wait_all_tasks_blocked()
        # The first is in the line, the second on its way into it; the others wait.
        await ends.peer.stream.aclose()
        await anyio.wait_all_tasks_blocked()
        broken = [call.error for call in calls]
        assert all(isinstance(error, connection.LineBroken) for error in broken)
        sent = [isinstance(each, connection.LineBroken) and each.sent for each in broken]
        assert sent == [True, True, False, False]
        assert len(ends.breaks) == 1
        with pytest.raises(connection.LineBroken) as caught:
            await ends.line.call("get", {})
        assert not caught.value.sent


async def test_a_break_in_the_middle_of_an_answer_ends_the_call() -> None:
    async with connected() as ends, anyio.create_task_group() as tasks:
        call = Outcome()
        tasks.start_soon(call.run, ends.line, "get", {})
        request = await ends.peer.request()
        whole = messages.pack((request.seq, State.REPLY, {}, b"x" * 100))
        await ends.peer.stream.send(whole[:50])
        await ends.peer.stream.aclose()
        await anyio.wait_all_tasks_blocked()
        assert isinstance(call.error, connection.LineBroken)
        assert ends.breaks == ["the server closed the line"]


async def test_an_answer_that_cannot_be_read_fails_its_call_only() -> None:
    async with connected() as ends, anyio.create_task_group() as tasks:
        calls = [Outcome() for _ in range(3)]
        for call in calls:
            tasks.start_soon(call.run, ends.line, "get", {})
            await anyio.wait_all_tasks_blocked()
        one, two, three = [(await ends.peer.request()).seq for _ in calls]
        await ends.peer.stream.send(frames.frame(bytes([0x94, one, 0, 0xC1])))
        big = messages.pack((two, State.REPLY, {}, b"x" * (handshake.REPLY_LIMIT + 1)))
        await ends.peer.stream.send(big)
        await ends.peer.reply(three)
        await anyio.wait_all_tasks_blocked()
        assert isinstance(calls[0].error, errors.BadFrame)
        assert isinstance(calls[1].error, errors.FrameTooLarge)
        assert calls[2].reply is not None
        assert not ends.breaks


@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 200 OK\r\n\r\n", frames.frame(b"\xc1"), b"\xff\xff\xff\xff", frames.frame(b"")],
    ids=["http", "no-msgpack", "huge", "empty"],
)
async def test_garbage_breaks_the_line_with_a_reason(garbage: bytes) -> None:
    async with connected() as ends:
        await ends.peer.stream.send(garbage)
        await anyio.wait_all_tasks_blocked()
        assert ends.line.broken is not None
        assert "does not keep to the protocol" in ends.line.broken


async def test_a_complaint_of_the_server_about_the_line_is_its_reason() -> None:
    async with connected() as ends:
        error = messages.error_fields(errors.BadFrame("too odd"))
        await ends.peer.reply(0, error, state=State.ERROR)
        await anyio.wait_all_tasks_blocked()
        assert "too odd" in str(ends.line.broken)


async def test_a_frame_over_the_servers_limit_is_refused_before_it_is_sent() -> None:
    async with connected() as ends:
        with pytest.raises(errors.FrameTooLarge):
            await ends.line.call("set", {}, b"x" * (ends.line.server.frame_limit + 1))
        with pytest.raises(errors.BadValue):
            await ends.line.call("set", {"path": object()})
        assert not ends.line._calls
        assert ends.stream.chunks_sent == 0


# Streams ----------------------------------------------------------------------------------------


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
        await anyio.wait_all_tasks_blocked()
        assert [bool(call.reply) for call in calls] == [True, False, True, True, True]
        line.close("the test is over")
    await peer.stream.aclose()


# Time, with a clock that jumps ------------------------------------------------------------------


def run_timed(test: Any) -> None:
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_call_is_ended_when_it_is_overdue_and_its_late_answer_dropped() -> None:
    async def body() -> None:
        async with connected(request_timeout_s=8) as ends:
            began = trio.current_time()
            with pytest.raises(connection.Overdue) as caught:
                await ends.line.call("get", {})
            assert caught.value.sent
            assert 8 <= trio.current_time() - began <= 9.01
            await ends.peer.reply((await ends.peer.request()).seq)
            await anyio.wait_all_tasks_blocked()
            assert not ends.breaks

    run_timed(body)


def test_what_takes_as_long_as_it_takes_is_not_overdue_and_hides_nobody_who_is() -> None:
    async def body() -> None:
        async with connected(request_timeout_s=8) as ends, anyio.create_task_group() as tasks:
            counts = []

            async def delete() -> None:
                counts.append((await ends.line.call("delete_tree", {})).fields["count"])

            tasks.start_soon(delete)
            seq = (await ends.peer.request()).seq
            with pytest.raises(connection.Overdue):
                await ends.line.call("get", {})
            await anyio.sleep(20)
            assert counts == []
            await ends.peer.reply(seq, {"count": 3})
            await anyio.wait_all_tasks_blocked()
            assert counts == [3]

    run_timed(body)


def test_a_call_that_could_not_leave_in_time_is_known_not_to_have_been_sent() -> None:
    async def body() -> None:
        async with connected(request_timeout_s=8, capacity=1) as ends:
            async with trio.open_nursery() as tasks:
                calls = [Outcome() for _ in range(3)]
                for call in calls:
                    tasks.start_soon(call.run, ends.line, "set", {})
                    await anyio.wait_all_tasks_blocked()
            late = [call.error for call in calls]
            sent = [isinstance(each, connection.Overdue) and each.sent for each in late]
            assert sent == [True, True, False]
            assert not ends.line._outgoing

    run_timed(body)


def test_a_stream_that_does_not_begin_is_overdue() -> None:
    async def body() -> None:
        async with connected(request_timeout_s=8) as ends:
            stream = StreamLog()
            seq = ends.line.open_stream(stream, "watch", {})
            begun = StreamLog()
            other = ends.line.open_stream(begun, "watch", {})
            await ends.peer.reply(other, state=State.START)
            told = await stream.wait_for(1)
            assert isinstance(told[0][1], errors.RequestTimeout)
            assert [(await ends.peer.request()).action for _ in range(3)][-1] == "stop"
            await trio.sleep(100)
            assert begun.told == ["started"]
            assert seq not in ends.line._streams

    run_timed(body)


def test_a_silent_line_is_tested_and_then_given_up() -> None:
    async def body() -> None:
        async with connected(silence_s=10) as ends:
            began = trio.current_time()
            ping = await ends.peer.request("ping")
            assert trio.current_time() - began == 10
            await ends.peer.reply(ping.seq)
            await ends.peer.request("ping")
            assert ends.line.broken is None
            with trio.move_on_after(30):
                while ends.line.broken is None:
                    await trio.sleep(0.1)
            assert "nothing was heard" in str(ends.line.broken)

    run_timed(body)


def test_a_line_that_is_spoken_on_is_not_tested() -> None:
    async def body() -> None:
        async with connected(silence_s=10) as ends:
            stream = StreamLog()
            seq = ends.line.open_stream(stream, "watch", {})
            await ends.peer.request("watch")
            await ends.peer.reply(seq, state=State.START)
            for _ in range(20):
                await trio.sleep(6)
                await ends.peer.reply(seq, {"mark": 1}, state=State.ITEM)
            with trio.move_on_after(5) as scope:
                await ends.peer.request("ping")
            assert scope.cancelled_caught

    run_timed(body)


def test_a_paused_line_is_not_taken_for_a_dead_one() -> None:
    async def body() -> None:
        async with connected(silence_s=10) as ends:
            stream = StreamLog()
            seq = ends.line.open_stream(stream, "get_tree", {})
            await ends.peer.request("get_tree")
            await ends.peer.reply(seq, state=State.START)
            stream.lagging = True
            await ends.peer.reply(seq, {"n": 1}, state=State.ITEM)
            await trio.sleep(200)
            assert ends.line.broken is None

    run_timed(body)


def test_the_peer_in_memory_greets_as_a_server_does() -> None:
    ours, theirs = memory_line()

    async def body() -> None:
        await Peer(theirs).greet()
        line = await handshake.greet(ours, "memory")
        assert line.server.node == GREETING["node"]

    trio.run(body)
