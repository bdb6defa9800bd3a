"""The cache of updates for plain threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Hashable
from typing import TypeVar

from moat_kv.coord import caching, ground
from moat_kv.coord.process import Process
from moat_kv.coord.updating import UpdateLogic

_U = TypeVar("_U", bound=UpdateLogic)


class LruCache(caching.CacheLogic[_U]):
    """`cache.set(key, update)`, and at the end `cache.expire_all()`; see `aio.LruCache`."""

    def __init__(self, max_entries: int = 10_000, background: bool = False) -> None:
        super().__init__(max_entries, background)
        self._ending: queue.SimpleQueue[_U | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    def set(self, key: Hashable, update: _U) -> bool | None:
        """Put an update in, or merge it into the one that is there.

        True: it is new. False: it was merged. None: merged into one whose time was up, which was
        ended. With `init_cache` its state is in the tree when this returns; if it raises (Detached,
        Disconnected, what `merge` raises, ValueError if the key has another resource's or another
        kind's), it was not taken.
        """
        return ground.drive(self._set(key, update))

    def get(self, key: Hashable) -> _U | None:
        """The update of that key; None if its time was up, then it was ended. Raises KeyError."""
        return ground.drive(self._get(key))

    def expire(self, key: Hashable) -> None:
        """End one. Raises KeyError. If its end fails, see `get_last_failed`, it is tried again."""
        ground.drive(self._expire(key))

    def expire_oldest(self) -> None:
        """End the least recently used one, if there is any."""
        ground.drive(self._expire_oldest())

    def expire_all(self) -> None:
        """End all."""
        ground.drive(self._expire_all())

    def purge(self) -> None:
        """End those whose time is up."""
        ground.drive(self._purge())

    def flush(self) -> None:
        """Wait until those that are ended in the background have been, or have failed."""
        with self._mutex:
            worker, self._worker = self._worker, None
        if worker is not None:
            self._ending.put(None)
            worker.join()

    def _end_later(self, update: _U) -> None:
        with self._mutex:
            self._ending.put(update)
            if self._worker is not None:
                return
            self._worker = threading.Thread(
                target=self._work, name="moat-kv ending sessions", daemon=True
            )
            self._worker.start()
        process = update.process
        if isinstance(process, Process) and self.flush not in process.on_stop:
            process.on_stop.append(self.flush)

    def _work(self) -> None:
        while (update := self._ending.get()) is not None:
            ground.drive(self._end_now(update))
