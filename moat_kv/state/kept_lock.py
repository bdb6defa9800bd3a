"""A model's lock in the network, which a process keeps for a moment after a State.

Used by `shared_entry`, in the client's event loop, by one State at a time. Taking and releasing a
lock are two writes that have to reach the disk; where one State follows another, these are saved.
How long others wait for that is bounded: `KEEP_S` from the acquisition, `IDLE_S` from the last use.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
import anyio.abc

if TYPE_CHECKING:
    from moat_kv.coord import aio
    from moat_kv.path import Path

#: From the acquisition on it is kept for so long, for one State after the other; in seconds.
KEEP_S = 0.1
#: Nobody having used it for so long, it is released; in seconds.
IDLE_S = 0.01
#: Whoever releases it waits at most so long for a release that is under way; in seconds.
TURN_S = 5.0


class KeptLock:
    """See the module."""

    def __init__(self, lock: aio.Lock, tasks: anyio.abc.TaskGroup) -> None:
        self._lock = lock
        self._tasks = tasks
        self._acquired_at = 0.0
        self._left_at = 0.0
        self._in_use = False
        self._is_waiting = False
        # One at a time acquires or releases.
        self._turn = anyio.Lock()

    @property
    def guard(self) -> tuple[Path, int]:
        """For writes that count only under this lock."""
        return self._lock.guard

    async def enter(self, timeout_s: float) -> None:
        """Have the lock for a State. Raises AlreadyLocked, Detached, Disconnected."""
        self._in_use = True
        try:
            async with self._turn:
                if self._lock.held and not self._is_overdue():
                    return
                await self._lock.release()
                await self._lock.acquire(timeout_s=timeout_s)
                self._acquired_at = time.monotonic()
        except BaseException:
            self._in_use = False
            raise

    async def leave(self) -> None:
        """The State is over."""
        self._in_use = False
        if self._is_overdue() or not self._lock.held:
            await self.release()
            return
        self._left_at = time.monotonic()
        if not self._is_waiting:
            self._is_waiting = True
            self._tasks.start_soon(self._release_soon)

    async def release(self) -> None:
        """Let others have it now, also if the State was cancelled."""
        self._in_use = False
        with anyio.move_on_after(TURN_S, shield=True):
            async with self._turn:
                await self._lock.release()
            return
        self._tasks.start_soon(self._release_if_idle)

    def doubt(self) -> None:
        """It turned out not to hold: do not keep it."""
        self._acquired_at = 0.0

    def _is_overdue(self) -> bool:
        return time.monotonic() - self._acquired_at >= KEEP_S

    async def _release_soon(self) -> None:
        try:
            while not self._in_use:
                idle_s = time.monotonic() - self._left_at
                if idle_s >= IDLE_S:
                    await self._release_if_idle()
                    return
                await anyio.sleep(IDLE_S - idle_s)
        finally:
            self._is_waiting = False

    async def _release_if_idle(self) -> None:
        async with self._turn:
            if not self._in_use:
                await self._lock.release()
