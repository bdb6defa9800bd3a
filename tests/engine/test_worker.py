"""The thread beside the event loop."""

from __future__ import annotations

import threading

import anyio
import pytest

from moat_kv.engine import worker

pytestmark = pytest.mark.anyio


async def test_calls_run_in_order_in_one_thread() -> None:
    thread = worker.Worker("test")
    seen: list[tuple[int, int]] = []

    def call(number: int) -> int:
        seen.append((number, threading.get_ident()))
        return number * 2

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(thread.run, call, number)
    assert await thread.run(call, 20) == 40
    thread.close()
    assert sorted(number for number, _ in seen) == list(range(21))
    assert len({ident for _, ident in seen}) == 1
    assert seen[0][1] != threading.get_ident()


async def test_an_error_is_raised_where_the_result_is_awaited() -> None:
    thread = worker.Worker("test")

    def fail() -> None:
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        await thread.run(fail)
    assert await thread.run(lambda: 1) == 1
    thread.close()


async def test_who_is_cancelled_abandons_the_result() -> None:
    thread = worker.Worker("test")
    go, finished = threading.Event(), threading.Event()

    def call() -> None:
        go.wait(30)
        finished.set()

    with anyio.move_on_after(0.02) as scope:
        await thread.run(call)
    assert scope.cancelled_caught
    assert not finished.is_set()
    go.set()
    thread.close()
    assert finished.is_set()


async def test_the_event_loop_goes_on_meanwhile() -> None:
    thread = worker.Worker("test")
    go = threading.Event()
    waited: list[bool] = []

    async def wait() -> None:
        waited.append(await thread.run(go.wait, 30))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        for _ in range(5):
            await anyio.sleep(0.005)
        assert waited == []
        go.set()
    assert waited == [True]
    thread.close()


def test_a_thread_whose_event_loop_has_ended_ends_too(anyio_backend: str) -> None:
    go = threading.Event()
    threads = []

    async def abandon() -> None:
        thread = worker.Worker("test")
        with anyio.move_on_after(0.01):
            await thread.run(go.wait, 30)
        threads.append(thread)

    anyio.run(abandon, backend=anyio_backend)
    go.set()
    threads[0]._thread.join(30)
    assert not threads[0]._thread.is_alive()
