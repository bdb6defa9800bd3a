"""The cache of updates for who has an event loop."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

import anyio

from moat_kv.coord import caching
from moat_kv.coord.updating import UpdateLogic

#: So many are ended at a time where all are.
WIDTH = 16

_U = TypeVar("_U", bound=UpdateLogic)


class LruCache(caching.CacheLogic[_U]):
    """`await cache.set(key, update)`, and at the end `await cache.expire_all()`."""

    def __init__(self, max_entries: int = 10_000, background: bool = False) -> None:
        super().__init__(max_entries, background)
        self._ending: list[_U] = []
        self._idle = anyio.Event()
        self._idle.set()

    async def set(self, key: Hashable, update: _U) -> bool | None:
        """Put an update in, or merge it into the one that is there.

        True: it is new. False: it was merged. None: merged into one whose time was up, which was
        ended. With `init_cache` its state is in the tree when this returns; if it raises (Detached,
        Disconnected, what `merge` raises, ValueError if the key has another resource's or another
        kind's), it was not taken.
        """
        return await self._set(key, update)

    async def get(self, key: Hashable) -> _U | None:
        """The update of that key; None if its time was up, then it was ended. Raises KeyError."""
        return await self._get(key)

    async def expire(self, key: Hashable) -> None:
        """End one. Raises KeyError. If its end fails, see `get_last_failed`, it is tried again."""
        await self._expire(key)

    async def expire_oldest(self) -> None:
        """End the least recently used one, if there is any."""
        await self._expire_oldest()

    async def expire_all(self) -> None:
        """End all, several at a time."""
        async with anyio.create_task_group() as tasks:
            for _ in range(WIDTH):
                tasks.start_soon(self._expire_all)

    async def purge(self) -> None:
        """End those whose time is up."""
        await self._purge()

    async def flush(self) -> None:
        """Wait until those that are ended in the background have been, or have failed."""
        await self._idle.wait()

    def _end_later(self, update: _U) -> None:
        process = update.process.asynchronous
        self._ending.append(update)
        if self._idle.is_set():
            self._idle = anyio.Event()
            if self.flush not in process.on_stop:
                process.on_stop.append(self.flush)
            process.tasks.start_soon(self._work)

    async def _work(self) -> None:
        try:
            while self._ending:
                await self._end_now(self._ending.pop(0))
        finally:
            self._idle.set()
