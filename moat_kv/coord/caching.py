"""A cache of updates: what comes in for the same key is merged, what goes out is ended.

The base of `moat_kv.coord.LruCache` and of its async form. The least recently used goes first when
there are too many. One that cannot be brought to its end is tried again with back-off
(`unsettled`), not dropped.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from moat_kv.coord.updating import UpdateLogic

logger = logging.getLogger(__name__)

_U = TypeVar("_U", bound=UpdateLogic)


class CacheLogic(Generic[_U]):
    """What async and blocking caches share. Any number of tasks or threads may use one.

    `max_entries`: at least 1. `background`: sessions are ended by a task, or a thread, of the
    cache's own, so that nobody waits for that; whoever stops the process waits for all of them.
    """

    def __init__(self, max_entries: int = 10_000, background: bool = False) -> None:
        if max_entries < 1:
            raise ValueError(f"a cache has at least one entry, not {max_entries}")
        self.max_entries = max_entries
        self.background = background
        self._mutex = threading.Lock()
        # The least recently used one first.
        self._entries: OrderedDict[Hashable, _U] = OrderedDict()
        self._failed: _U | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Hashable]:
        """The keys, the least recently used first."""
        return iter(list(self._entries))

    def size(self) -> int:
        """How many updates it has."""
        return len(self._entries)

    def get_last_failed(self) -> _U | None:
        """The last update whose end failed; None if none has yet."""
        return self._failed

    # Each of these has an async and a blocking form ----------------------------------------------

    async def _set(self, key: Hashable, update: _U) -> bool | None:
        while True:
            present, surplus = self._put(key, update)
            if present is None:
                await self._begin(key, update)
                for each in surplus:
                    await self._end(each)
                return True
            if present is update:
                return False
            if await self._merged(present, update):
                if not present.is_expired():
                    return False
                if self._take(key, present) is not None:
                    await self._end(present)
                return None
            # Its end has begun since; then this one is new.
            self._take(key, present)

    async def _merged(self, present: _U, update: _U) -> bool:
        try:
            return await present._course.refresh(update)
        except BaseException:
            update._course.let_go()
            raise

    def _put(self, key: Hashable, update: _U) -> tuple[_U | None, list[_U]]:
        """The one that is there already, or None and those that are too many now."""
        with self._mutex:
            present = self._entries.get(key)
            if present is not None:
                self._entries.move_to_end(key)
                return present, []
            self._entries[key] = update
            surplus = []
            while len(self._entries) > self.max_entries:
                surplus.append(self._entries.popitem(last=False)[1])
            return None, surplus

    def _take(self, key: Hashable, update: _U) -> _U | None:
        """Remove it if it is still there."""
        with self._mutex:
            if self._entries.get(key) is not update:
                return None
            return self._entries.pop(key)

    async def _begin(self, key: Hashable, update: _U) -> None:
        try:
            await update._course.begin_in_cache()
        except BaseException:
            self._take(key, update)
            raise

    async def _get(self, key: Hashable) -> _U | None:
        with self._mutex:
            update = self._entries[key]
            if not update.is_expired():
                self._entries.move_to_end(key)
                return update
        if self._take(key, update) is not None:
            await self._end(update)
        return None

    async def _expire(self, key: Hashable) -> None:
        with self._mutex:
            update = self._entries.pop(key)
        await self._end(update)

    async def _expire_oldest(self) -> bool:
        with self._mutex:
            if not self._entries:
                return False
            _, update = self._entries.popitem(last=False)
        await self._end(update)
        return True

    async def _expire_all(self) -> None:
        while await self._expire_oldest():
            pass

    async def _purge(self) -> None:
        with self._mutex:
            expired = [key for key, each in self._entries.items() if each.is_expired()]
            updates = [self._entries.pop(key) for key in expired]
        for update in updates:
            await self._end(update)

    # Ends ---------------------------------------------------------------------------------------

    async def _end(self, update: _U) -> None:
        if self.background:
            self._end_later(update)
        else:
            await self._end_now(update)

    def _end_later(self, update: _U) -> None:
        raise NotImplementedError

    async def _end_now(self, update: _U) -> None:
        course = update._course
        try:
            await course.end(update.block)
        except Exception:
            logger.exception("the session of %s could not be ended yet", update.resource_id)
            self._failed = update
            if course.todo is None:
                update.process.asynchronous.unsettled.add(course)
