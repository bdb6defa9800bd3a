"""One line by a clock that jumps: what is overdue, and a line from which nothing comes."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.abc
import pytest
import trio
import trio.testing

from moat_kv import errors
from moat_kv.client import under_way
from moat_kv.proto.messages import State
from tests.client.peer import Outcome, StreamLog, connected

pytestmark = pytest.mark.anyio


def run_timed(test: Any) -> None:
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_call_is_ended_when_it_is_overdue_and_its_late_answer_dropped() -> None:
    async def body() -> None:
        async with connected(request_timeout_s=8) as ends:
            began = trio.current_time()
            with pytest.raises(under_way.Overdue) as caught:
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
            with pytest.raises(under_way.Overdue):
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
            sent = [isinstance(each, under_way.Overdue) and each.sent for each in late]
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
