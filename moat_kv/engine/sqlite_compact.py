"""Dropping what the history limits allow to drop, in slices that no writer notices.

Run by `engine.sqlite` beside its commits: each slice is one call in the worker thread, so that a
commit waits for one slice at most, and after each slice the compactor rests. It is woken by writes
alone: an idle log is not compacted.

Two things go. Of each path, records beyond the newest `history`; that concerns nobody. And
deletions that are older than `tombstone_s` and still the newest word on their path, together with
all that is before them; whoever knows the tree only from before cannot be told of them any more,
so the floor rises, in the same transaction.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable

import anyio

from moat_kv import errors
from moat_kv.engine import base, sqlite_store, worker

_log = logging.getLogger(__name__)

#: What one slice may take, in seconds; the number of rows in a slice follows from it.
_SLICE_S = 0.003
#: Fewer rows would not be faster: most of what a small slice takes is its fsync.
_LEAST_ROWS, _MOST_ROWS = 100, 2_000
#: How long the compactor rests after a slice, as a multiple of what the slice took.
_REST = 2.0
#: Pages that are given back to the file system in one slice.
_PAGES = 64


class Compactor:
    """Knows how far compaction has come.

    `after`: how many droppable records are worth a pass. `revision` tells the last one applied,
    `raise_floor` is called with a new floor once it is durable.
    """

    def __init__(
        self,
        store: sqlite_store.SqliteStore,
        thread: worker.Worker,
        replica: base.Replica,
        *,
        history: int,
        tombstone_s: float,
        after: int,
        clock: Callable[[], float],
        revision: Callable[[], int],
        raise_floor: Callable[[int], None],
    ) -> None:
        self._store = store
        self._worker = thread
        self._replica = replica
        self._history = history
        self._tombstone_s = tombstone_s
        self._after = after
        self._clock = clock
        self._revision = revision
        self._raise_floor = raise_floor
        #: Records up to here have been looked at.
        self.trimmed = 0
        #: How many records have been dropped since the start.
        self.dropped = 0
        self._tombstones_seen = 0
        # Deletions up to here did not come while the disk was full.
        self._buried = 0
        self._gathered = 0
        self._wake = anyio.Event()
        self._working = anyio.Lock()

    def note(self, count: int) -> None:
        """So many records more may have become droppable."""
        self._gathered += count
        if self._gathered >= self._after:
            self._wake.set()

    def bury_above(self, revision: int) -> None:
        """The disk has run full; deletions up to this revision were not meant to make room."""
        self._buried = max(self._buried, revision)

    async def run(self) -> None:
        """Compact whenever enough has gathered, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            try:
                await self.compact(rest=_REST)
            except errors.EngineError as exc:
                # What cannot be compacted now can be after the next writes; they report trouble.
                _log.warning("compaction stopped: %s", exc)

    async def compact(self, *, rest: float = 0.0) -> None:
        """Drop everything that may be dropped now. Raises StorageFailed, StorageDamaged."""
        async with self._working:
            self._gathered = 0
            await self._trim(rest)
            await self._forget(rest)
            await self._shrink(rest)

    async def make_room(self) -> None:
        """Drop what may be dropped, and give free pages back, on a disk that is full.

        Of entries that were deleted meanwhile earlier versions are dropped, too: whoever deletes to
        make room has to get it, not only when the deletion itself is old.
        """
        await self.compact()
        async with self._working:
            await self._bury()
            while await self._worker.run(functools.partial(self._store.shrink, _PAGES, few=True)):
                pass
            await self._worker.run(self._store.regain)

    async def _bury(self) -> None:
        applied = self._revision()
        while True:
            found = await self._worker.run(self._store.tombstones, self._buried, 100)
            found = [record for record in found if record.rev <= applied]
            if not found:
                return
            heads = [(record.rev, self._replica.head(record.path)) for record in found]
            deleted = [rev for rev, head in heads if head is not None and head.rev == rev]
            if deleted:
                self.dropped += await self._worker.run(self._store.bury, deleted)
            self._buried = found[-1].rev

    async def _trim(self, rest: float) -> None:
        rows = _LEAST_ROWS
        # Not what is written meanwhile, or a busy log would never be done.
        target = self._revision()
        while self.trimmed < target:
            start = time.monotonic()
            until, dropped = await self._worker.run(
                self._store.trim, self.trimmed, rows, self._history
            )
            if until == self.trimmed:
                return
            self.trimmed = until
            self.dropped += dropped
            taken = time.monotonic() - start
            rows = max(_LEAST_ROWS, min(_MOST_ROWS, int(rows * min(2.0, _SLICE_S / taken))))
            await anyio.sleep(taken * rest)

    async def _shrink(self, rest: float) -> None:
        more = True
        while more:
            start = time.monotonic()
            more = await self._worker.run(self._store.shrink, _PAGES)
            await anyio.sleep((time.monotonic() - start) * rest)

    async def _forget(self, rest: float) -> None:
        oldest = self._clock() - self._tombstone_s
        count = 100
        while True:
            found = await self._worker.run(self._store.tombstones, self._tombstones_seen, count)
            # The file may be a commit ahead of the tree, which alone knows what is a path's last.
            applied = self._revision()
            old = [record for record in found if record.at < oldest and record.rev <= applied]
            if not old:
                return
            # What has been written over since is a mere part of its path's history.
            gone = []
            for record in old:
                head = self._replica.head(record.path)
                if head is not None and head.rev == record.rev:
                    gone.append(record.rev)
            start = time.monotonic()
            if gone:
                # Not to be cancelled between the file and the tree.
                with anyio.CancelScope(shield=True):
                    self.dropped += await self._worker.run(
                        self._store.forget, gone, self._revision()
                    )
                    self._raise_floor(gone[-1])
            self._tombstones_seen = old[-1].rev
            await anyio.sleep((time.monotonic() - start) * rest)
