"""One line: matching of answers, cancelled callers, breaks."""

from __future__ import annotations

import anyio
import anyio.abc
import pytest
import trio
import trio.testing

from moat_kv import errors
from moat_kv.client import handshake, under_way
from moat_kv.path import P
from moat_kv.proto import frames, messages
from moat_kv.proto.messages import State
from tests.client.peer import GREETING, Outcome, Peer, connected, memory_line

pytestmark = pytest.mark.anyio


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
        assert all(isinstance(error, under_way.LineBroken) for error in broken)
        sent = [isinstance(each, under_way.LineBroken) and each.sent for each in broken]
        assert sent == [True, True, False, False]
        assert len(ends.breaks) == 1
        with pytest.raises(under_way.LineBroken) as caught:
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
        assert isinstance(call.error, under_way.LineBroken)
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


def test_the_peer_in_memory_greets_as_a_server_does() -> None:
    ours, theirs = memory_line()

    async def body() -> None:
        await Peer(theirs).greet()
        line = await handshake.greet(ours, "memory")
        assert line.server.node == GREETING["node"]

    trio.run(body)
