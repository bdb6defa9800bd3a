"""A lock that threads and tasks of any event loop can wait for side by side, in turn.

One for each model; `context` takes them. It is handed over: whoever releases it gives it to the
first that waits, so it cannot be taken by somebody who came later. It does not know who holds it
for what; `holding` does.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

from moat_kv.state import loops


class _Waiting(NamedTuple):
    waker: loops.Waker
    thread: int
    in_loop: bool
    granted: list[bool]


class ModelLock:
    """See the module. A free one is taken and released without a wait or a wake."""

    __slots__ = ("_holder_in_loop", "_holder_thread", "_lock", "_mutex", "_waiting")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guards what follows, for moments only.
        self._mutex = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._holder_thread = 0
        # Whether the holder is a task, which needs its loop to go on.
        self._holder_in_loop = False

    @property
    def is_held(self) -> bool:
        return self._lock.locked()

    def try_acquire(self, *, in_loop: bool) -> bool:
        """Take it if nobody has it."""
        if not self._lock.acquire(False):
            return False
        self._holder_thread = threading.get_ident()
        self._holder_in_loop = in_loop
        return True

    def acquire(self, timeout_s: float | None, *, in_loop: bool) -> bool:
        """Wait for it in this thread; False if it was not to be had in time.

        Raises RuntimeError if that would stop the event loop of this thread (`in_loop`), whose own
        task has it or is before us.
        """
        if self.try_acquire(in_loop=False):
            return True
        waker = loops.ThreadWaker()
        place = self._queue(waker, in_loop=False, stops_loop=in_loop)
        if place is None:
            return True
        finished = False
        try:
            waker.wait(timeout_s)
            finished = True
        finally:
            got = self._settle(place, finished)
        return got

    async def acquire_async(self, timeout_s: float | None) -> bool:
        """Wait for it in this task; False if it was not to be had in time."""
        if self.try_acquire(in_loop=True):
            return True
        waker = loops.TaskWaker()
        place = self._queue(waker, in_loop=True, stops_loop=False)
        if place is None:
            return True
        finished = False
        try:
            await waker.wait(timeout_s)
            finished = True
        finally:
            got = self._settle(place, finished)
        return got

    def _queue(self, waker: loops.Waker, *, in_loop: bool, stops_loop: bool) -> _Waiting | None:
        """A place in the queue; None: it was free after all, and is ours."""
        place = _Waiting(waker, threading.get_ident(), in_loop, [])
        with self._mutex:
            if self.try_acquire(in_loop=in_loop):
                return None
            if stops_loop and self._needs_thread(place.thread):
                raise RuntimeError("this would stop the event loop that has to run on")
            self._waiting.append(place)
        return place

    def _needs_thread(self, thread: int) -> bool:
        if self._holder_in_loop and self._holder_thread == thread:
            return True
        return any(each.in_loop and each.thread == thread for each in self._waiting)

    def _settle(self, place: _Waiting, keep: bool) -> bool:
        """After the wait: whether it is ours. If the wait was broken off, it goes on to others."""
        with self._mutex:
            if not place.granted:
                self._waiting.remove(place)
                return False
        if not keep:
            self.release()
        return keep

    def release(self) -> None:
        """Give it to the first that waits."""
        with self._mutex:
            while self._waiting:
                place = self._waiting.popleft()
                place.granted.append(True)
                self._holder_thread, self._holder_in_loop = place.thread, place.in_loop
                if place.waker.wake():
                    return
            self._lock.release()
