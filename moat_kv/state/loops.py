"""Who runs here, and how to reach an event loop from any thread.

Used by the locks, by the delivery to subscribers and by sharing. `Loop` is one running asyncio or
trio loop; `Waker` lets a thread or a task wait until somebody in any other thread calls `wake`.
Nothing here knows of models.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import anyio

if TYPE_CHECKING:
    import trio


def current_task() -> object:
    """What tells the task that runs here from all others; without an event loop, the thread.

    A thread is its number, a task is itself.
    """
    loop = asyncio._get_running_loop()
    if loop is not None:
        return asyncio.current_task(loop) or threading.get_ident()
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_task():
            return trio.lowlevel.current_task()
    return threading.get_ident()


class Loop(Protocol):
    """An event loop, seen from other threads."""

    def call(self, function: Callable[[], object]) -> bool:
        """Have a plain function called in the loop soon; False: the loop is not running."""

    def spawn(self, function: Callable[[], Awaitable[None]]) -> bool:
        """Have an async function run in the loop; False: the loop is not running."""

    def is_running(self) -> bool:
        """Whether it runs now."""

    def is_over(self) -> bool:
        """Whether it will never run again."""


class AsyncioLoop:
    """See `Loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # The loop itself keeps no hold of its tasks.
        self._tasks: set[asyncio.Task[None]] = set()

    def call(self, function: Callable[[], object]) -> bool:
        if not self._loop.is_running():
            return False
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # it was closed meanwhile
            return False
        return True

    def spawn(self, function: Callable[[], Awaitable[None]]) -> bool:
        async def run() -> None:
            await function()

        def start() -> None:
            task = self._loop.create_task(run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return self.call(start)

    def is_running(self) -> bool:
        return self._loop.is_running()

    def is_over(self) -> bool:
        return self._loop.is_closed()


class TrioLoop:
    """See `Loop`."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._is_over = False

    def call(self, function: Callable[[], object]) -> bool:
        import trio

        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            self._is_over = True
        return not self._is_over

    def spawn(self, function: Callable[[], Awaitable[None]]) -> bool:
        import trio

        return self.call(lambda: trio.lowlevel.spawn_system_task(function))

    def is_running(self) -> bool:
        return self.call(lambda: None)

    def is_over(self) -> bool:
        return not self.is_running()


def current_loop() -> Loop | None:
    """The event loop that runs in this thread, if one does."""
    loop = asyncio._get_running_loop()
    if loop is not None:
        return AsyncioLoop(loop)
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            return TrioLoop(trio.lowlevel.current_trio_token())
    return None


def has_loop() -> bool:
    """Whether an event loop runs in this thread."""
    return current_loop() is not None


class Waker(Protocol):
    """One wait; made where it is waited, woken from anywhere."""

    def wake(self) -> bool:
        """End the wait. False: whoever waits cannot be reached any more."""


class ThreadWaker:
    """Stops its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> bool:
        self._lock.release()
        return True

    def wait(self, timeout_s: float | None) -> bool:
        """Whether it was woken within that time."""
        return self._lock.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))


class TaskWaker:
    """Stops its task alone."""

    def __init__(self) -> None:
        loop = current_loop()
        assert loop is not None
        self._loop = loop
        self._event = anyio.Event()

    def wake(self) -> bool:
        return self._loop.call(self._event.set)

    async def wait(self, timeout_s: float | None) -> bool:
        """Whether it was woken within that time."""
        with anyio.move_on_after(timeout_s):
            await self._event.wait()
        return self._event.is_set()


class Deadline:
    """A time limit that was given once, for several waits; None: no limit."""

    def __init__(self, timeout_s: float | None) -> None:
        self._until = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def left_s(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - time.monotonic())
