"""Locks: one order, no re-entry, no stopped event loops, time limits."""

from __future__ import annotations

import asyncio
import threading
import time

import anyio
import anyio.to_thread
import pytest

from moat_kv.state import (
    AlreadyHeld,
    LockOrderError,
    LockTimeout,
    State,
    StateModel,
    WouldDeadlock,
    grounds,
    locks,
    registry,
)


class A(StateModel):
    x: int = 0


class B(StateModel):
    x: int = 0


class C(StateModel):
    x: int = 0


@pytest.fixture(autouse=True)
def loaded() -> None:
    with State() as state:
        for cls in (C, A, B):
            state.load(cls())


def test_a_state_inside_a_state_may_add_what_comes_later() -> None:
    with State(A), State(B), State(C) as state:
        state.commit(state.checkout(C))
    with State(A):
        pass


def test_a_state_inside_a_state_must_not_add_what_comes_before() -> None:
    with State(B):
        with pytest.raises(LockOrderError, match="A comes before B"):
            with State(C, A):
                raise AssertionError
        with State(C):
            pass


def test_re_entry_is_an_error_that_says_so() -> None:
    with State(A), pytest.raises(AlreadyHeld, match="A is held here already"):
        with State(A):
            raise AssertionError
    with State(A) as state:
        with pytest.raises(RuntimeError, match="entered already"):
            state.__enter__()
    with State(A):
        pass


def test_a_model_named_twice_is_locked_once() -> None:
    with State(A, A, B):
        pass


def test_models_are_locked_in_one_order_whichever_way_they_are_named() -> None:
    done = []

    def lock_both(*models: type[StateModel]) -> None:
        for _ in range(500):
            with State(*models):
                pass
        done.append(models)

    threads = [threading.Thread(target=lock_both, args=models) for models in ((A, B), (B, A))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert len(done) == 2


def test_a_lock_that_is_not_to_be_had_in_time_is_an_error() -> None:
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with State(B):
            held.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with pytest.raises(LockTimeout, match="held by others"):
        with State(A, B, timeout_s=0.01):
            raise AssertionError
    with State(A, timeout_s=1):  # which the failed one has let go of
        pass
    leave.set()
    with State(A, B, timeout_s=30):
        pass
    thread.join()


def test_the_lock_is_handed_to_who_waited_first() -> None:
    lock = locks.ModelLock()
    assert lock.try_acquire(in_loop=False)
    order: list[int] = []

    def wait(number: int) -> None:
        assert lock.acquire(30, in_loop=False)
        order.append(number)
        lock.release()

    threads = []
    for number in range(5):
        thread = threading.Thread(target=wait, args=(number,))
        thread.start()
        threads.append(thread)
        while len(lock._waiting) <= number:
            time.sleep(0.001)
    lock.release()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    assert not lock.is_held


def test_a_lock_whose_next_in_line_is_gone_goes_to_the_one_after() -> None:
    lock = locks.ModelLock()
    lock.try_acquire(in_loop=False)
    loop = asyncio.new_event_loop()

    async def wait() -> None:
        await lock.acquire_async(None)

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    lock.release()  # to a loop that does not run
    assert not lock.is_held
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    assert lock.try_acquire(in_loop=False)


@pytest.mark.anyio
async def test_a_plain_state_does_not_stop_the_loop_that_it_waits_for() -> None:
    held = anyio.Event()

    async def hold() -> None:
        async with State(A):
            held.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await held.wait()
        with pytest.raises(WouldDeadlock, match="use `async with`"):
            with State(A):
                raise AssertionError
        tasks.cancel_scope.cancel()
    with State(A):
        pass


@pytest.mark.anyio
async def test_nor_one_where_a_task_of_the_loop_is_before_it() -> None:
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with State(A):
            held.set()
            leave.wait()

    async def wait() -> None:
        async with State(A):
            pass

    thread = threading.Thread(target=hold)
    thread.start()
    await anyio.to_thread.run_sync(held.wait)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(WouldDeadlock):
            with State(A):
                raise AssertionError
        leave.set()
    thread.join()


@pytest.mark.anyio
async def test_a_task_that_is_cancelled_while_it_waits_leaves_the_line() -> None:
    async with State(A):
        with anyio.move_on_after(0.01):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(enter)
    with anyio.fail_after(30):
        async with State(A):
            pass


async def enter() -> None:
    async with State(A):
        raise AssertionError


@pytest.mark.anyio
async def test_a_task_has_a_time_limit_too() -> None:
    failed = []

    async def wait() -> None:
        try:
            async with State(A, timeout_s=0.01):
                raise AssertionError
        except LockTimeout as exc:
            failed.append(exc.timeout_s)

    async with State(A), anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
    assert failed == [0.01]


@pytest.mark.anyio
async def test_a_state_that_could_not_be_entered_holds_nothing_and_may_be_tried_again() -> None:
    late, waiting = State(A, timeout_s=0.01), State(A, timeout_s=0.01)

    def too_late() -> None:
        with pytest.raises(LockTimeout), late:
            raise AssertionError
        assert late._held() == ()

    async def wait() -> None:
        with pytest.raises(LockTimeout):
            async with waiting:
                raise AssertionError

    async with State(A), anyio.create_task_group() as tasks:
        await anyio.to_thread.run_sync(too_late)
        tasks.start_soon(wait)
    assert waiting._held() == ()
    with late:
        assert late._held()
    async with waiting:
        pass


@pytest.mark.anyio
async def test_a_child_task_is_somebody_else() -> None:
    order = []

    async def child() -> None:
        async with State(A):
            order.append("child")

    async with anyio.create_task_group() as tasks:
        async with State(A):
            tasks.start_soon(child)
            await anyio.wait_all_tasks_blocked()
            order.append("parent")
    assert order == ["parent", "child"]


@pytest.mark.anyio
async def test_who_is_granted_the_lock_while_being_cancelled_passes_it_on() -> None:
    lock = locks.ModelLock()
    lock.try_acquire(in_loop=False)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                await lock.acquire_async(None)
                raise AssertionError

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            lock.release()
    assert not lock.is_held


# When letting go fails --------------------------------------------------------------------------


class Stubborn:
    """The part of a shared entry that locks, and will not let go."""

    is_plain = True

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def lock(self, ground: grounds.Ground, timeout_s: float | None) -> None:
        pass

    async def unlock(self, ground: grounds.Ground) -> None:
        raise self._error


def test_a_lock_that_cannot_be_released_is_logged_and_the_others_are_released(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slot = registry.models.find(B)
    slot.entry = Stubborn(OSError("no line"))  # type: ignore[assignment]
    with State(A, B, C):
        pass
    assert "the lock of B could not be released: no line" in caplog.text
    slot.entry = None
    with State(A, B, C, timeout_s=1):
        pass


def test_an_interrupted_release_still_lets_go_of_all() -> None:
    slot = registry.models.find(B)
    slot.entry = Stubborn(KeyboardInterrupt())  # type: ignore[assignment]
    state = State(A, B, C)
    state.__enter__()
    with pytest.raises(KeyboardInterrupt):
        state.__exit__(None, None, None)
    slot.entry = None
    with State(A, B, C, timeout_s=1):
        pass


def test_a_lock_that_comes_free_on_the_way_to_the_queue_is_taken() -> None:
    answers = [False]

    class Late(locks.ModelLock):
        def try_acquire(self, *, in_loop: bool) -> bool:
            return answers.pop() if answers else super().try_acquire(in_loop=in_loop)

    late = Late()
    assert late.acquire(0, in_loop=False)
    assert late.is_held
    late.release()
    answers.append(False)

    async def in_task() -> bool:
        return await late.acquire_async(0)

    assert anyio.run(in_task)
