"""The queue that scripts read as `_info`."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from moat_kv_runner.info_queue import InfoQueue

pytestmark = pytest.mark.anyio


async def drain(queue: InfoQueue) -> list[Any]:
    return [await queue.get() for _ in range(queue.qsize())]


async def test_messages_come_in_order() -> None:
    queue = InfoQueue()
    queue.push_state("state")
    queue.push_start(0)
    await queue.put_change("w", "a", "a=1")
    queue.push("timer")
    assert await drain(queue) == ["state", 0, "a=1", "timer"]


async def test_changes_of_one_path_are_conflated_in_place() -> None:
    queue = InfoQueue()
    await queue.put_change("w", "a", "a=1")
    await queue.put_change("w", "b", "b=1")
    queue.push_ready(1)
    await queue.put_change("w", "a", "a=2")
    assert await drain(queue) == ["a=2", "b=1", 1]


async def test_two_watches_of_one_path_are_not_conflated() -> None:
    queue = InfoQueue()
    await queue.put_change("w1", "a", "first")
    await queue.put_change("w2", "a", "second")
    assert await drain(queue) == ["first", "second"]


async def test_change_that_was_read_is_not_conflated_with_the_next() -> None:
    queue = InfoQueue()
    await queue.put_change("w", "a", 1)
    assert await queue.get() == 1
    await queue.put_change("w", "a", 2)
    assert await queue.get() == 2


async def test_newer_group_state_replaces_an_unread_one() -> None:
    queue = InfoQueue()
    queue.push_state("partial")
    queue.push("timer")
    queue.push_state("complete")
    assert await drain(queue) == ["complete", "timer"]


async def test_newer_ready_message_goes_to_the_end_and_the_first_one_stays() -> None:
    queue = InfoQueue()
    queue.push_start(0)
    queue.push_ready(1)
    await queue.put_change("w", "a", "a=1")
    queue.push_ready(2)
    assert await drain(queue) == [0, "a=1", 2]


async def test_timers_that_overflow_end_the_queue_with_none() -> None:
    queue = InfoQueue(limit=3)
    assert [queue.push(n) for n in range(5)] == [True, True, True, False, False]
    assert [message async for message in queue] == [0, 1, 2, None]
    with pytest.raises(anyio.EndOfStream):
        await queue.get()
    with pytest.raises(anyio.ClosedResourceError):
        await queue.put("late")


async def test_states_and_ready_messages_find_room_in_a_full_queue() -> None:
    queue = InfoQueue(limit=1)
    queue.push("timer")
    queue.push_state("state")
    queue.push_ready(1)
    assert not queue.ended
    assert await drain(queue) == ["timer", "state", 1]


async def test_watch_waits_for_room_and_loses_nothing() -> None:
    queue = InfoQueue(limit=10)

    async def watch() -> None:
        for n in range(50):
            assert await queue.put_change("w", n, n)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await anyio.wait_all_tasks_blocked()
        assert queue.qsize() == 10
        with anyio.fail_after(30):
            seen = [await queue.get() for _ in range(50)]
    assert seen == list(range(50))


async def test_waiting_change_is_replaced_in_a_full_queue_without_waiting() -> None:
    queue = InfoQueue(limit=1)
    await queue.put_change("w", "a", 1)
    with anyio.fail_after(30):
        await queue.put_change("w", "a", 2)
    assert await drain(queue) == [2]


async def test_waiting_watch_ends_with_the_queue() -> None:
    queue = InfoQueue(limit=1)
    queue.push("timer")
    results: list[bool] = []

    async def watch() -> None:
        results.append(await queue.put_change("w", "a", 1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await anyio.wait_all_tasks_blocked()
        queue.end()
    assert results == [False]


async def test_cancelled_watch_leaves_nothing_behind() -> None:
    queue = InfoQueue(limit=2)
    await queue.put_change("w1", "a", 1)
    await queue.put_change("w2", "a", 2)
    queue.drop("w1")
    await queue.put_change("w2", "b", 3)
    assert await drain(queue) == [2, 3]


async def test_own_messages_wait_for_room() -> None:
    queue = InfoQueue(limit=1)
    await queue.put(1)
    order: list[Any] = []

    async def put() -> None:
        await queue.put(2)
        order.append("put")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(put)
        await anyio.wait_all_tasks_blocked()
        order.append(await queue.get())
    assert order == [1, "put"]
    assert await queue.get() == 2


async def test_reader_waits_for_a_message() -> None:
    queue = InfoQueue()
    seen: list[Any] = []

    async def read() -> None:
        seen.append(await queue.get())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        queue.push(1)
        queue.push(2)
    assert sorted(seen) == [1, 2]


async def test_reading_always_lets_others_run() -> None:
    queue = InfoQueue()
    queue.push(1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await queue.get()
    assert queue.qsize() == 1, "a cancelled read takes nothing"


def test_limit_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least one"):
        InfoQueue(0)
