"""When records become durable: before they are answered, or within some time after.

`engine.sqlite` hands each judged commit to one of these two; they hand it to the store in the
worker thread. Both refuse with StorageFailed what could not be kept, and what is refused was not
written.

Several commits may be under way with `AtOnce`: the thread goes from one to the next without waiting
for the event loop, which judges the next one meanwhile. Where one fails, so do those behind it, for
they were judged as if it had come about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import anyio

from moat_kv import errors
from moat_kv.engine import sqlite_rows, sqlite_store, worker

#: So many records may be applied before they are saved.
UNSAVED_LIMIT = 20_000
#: After an unclean end under relaxed saving revisions go on so far above the last saved one: by
#: more than can have been given out, which is `UNSAVED_LIMIT` and one commit.
SKIPPED_REVISIONS = 1 << 20
#: So many records are saved in one transaction; new writes are not held up, but memory is.
_CHUNK = 2_000

Report = Callable[[str | None], None]
"""Told why saving in the background failed, or None once it has succeeded."""
Kept = Callable[[BaseException | None], None]
"""Told that the records of a commit may be applied, or why not: StorageFailed, or a fault."""


class Saver(Protocol):
    """How an engine keeps records. `save` and `finish` raise StorageFailed."""

    #: So many commits may be under way, 1 or more.
    depth: int

    @property
    def unsaved(self) -> Sequence[sqlite_rows.Entry]:
        """What is applied, but not yet in the file; in order."""

    def keep(self, entries: Sequence[sqlite_rows.Entry], kept: Kept) -> None:
        """Take the records of a commit. `kept` is called in the event loop, perhaps at once."""

    async def run(self) -> None:
        """What is to be done in the background, until cancelled."""

    async def save(self) -> None:
        """Make durable what is unsaved."""

    async def finish(self) -> None:
        """Make everything durable, and note in the file that it is complete."""


class AtOnce:
    """Records are on disk before they are applied and answered."""

    depth = 2
    unsaved: Sequence[sqlite_rows.Entry] = ()

    def __init__(self, store: sqlite_store.SqliteStore, thread: worker.Worker) -> None:
        self._store = store
        self._worker = thread
        self._under_way = 0
        # The last revision of the commit that was handed over last.
        self._handed = 0

    def keep(self, entries: Sequence[sqlite_rows.Entry], kept: Kept) -> None:
        after = self._handed if self._under_way else self._store.saved
        self._handed = entries[-1][0].rev
        self._under_way += 1

        def told(error: BaseException | None) -> None:
            self._under_way -= 1
            kept(error)

        self._worker.post(told, self._commit, entries, after)

    def _commit(self, entries: Sequence[sqlite_rows.Entry], after: int) -> None:
        if self._store.saved != after:
            raise errors.StorageFailed(self._store.place, "the commit before this one failed")
        self._store.commit(entries)

    async def run(self) -> None:
        """Nothing waits."""

    async def save(self) -> None:
        """Nothing is unsaved."""

    async def finish(self) -> None:
        """Nothing is unsaved, and no end is unclean."""


class Later:
    """Records are applied and answered at once, and saved together `delay_s` later at most.

    While saving fails, nothing more is taken: each further commit is first tried together with
    what could not be saved, so that what may be lost stays bounded.
    """

    depth = 1

    def __init__(
        self,
        store: sqlite_store.SqliteStore,
        thread: worker.Worker,
        *,
        delay_s: float,
        report: Report,
        start_soon: Callable[..., object],
    ) -> None:
        self.unsaved: list[sqlite_rows.Entry] = []
        self._store = store
        self._worker = thread
        self._delay_s = delay_s
        self._report = report
        self._start_soon = start_soon
        self._failing = False
        #: The file says that answered records may be missing from it.
        self._marked = False
        self._some = anyio.Event()
        self._saving = anyio.Lock()

    def keep(self, entries: Sequence[sqlite_rows.Entry], kept: Kept) -> None:
        usual = self._marked and not self._failing and not self._store.low
        if usual and len(self.unsaved) < UNSAVED_LIMIT:
            self._take(entries)
            kept(None)
        else:
            self._start_soon(self._keep_later, entries, kept)

    async def _keep_later(self, entries: Sequence[sqlite_rows.Entry], kept: Kept) -> None:
        with anyio.CancelScope(shield=True):
            try:
                if not self._marked:
                    await self._worker.run(self._store.write_meta, {"state": "relaxed"})
                    self._marked = True
                if self._failing or len(self.unsaved) >= UNSAVED_LIMIT:
                    await self.save()
                if self._store.low and any(record.value is not None for record, _ in entries):
                    await self._worker.run(self._store.require_room)
                self._take(entries)
            except Exception as exc:  # the engine raises what is not StorageFailed
                kept(exc)
            else:
                kept(None)

    def _take(self, entries: Sequence[sqlite_rows.Entry]) -> None:
        self.unsaved += entries
        self._some.set()

    async def run(self) -> None:
        while True:
            await self._some.wait()
            await anyio.sleep(self._delay_s)
            self._some = anyio.Event()
            try:
                await self.save()
            except errors.StorageFailed as exc:
                self._report(str(exc.reason))
                self._some.set()
            else:
                self._report(None)

    async def save(self) -> None:
        async with self._saving:
            try:
                while self.unsaved:
                    chunk = self.unsaved[:_CHUNK]
                    # Who gave up between these two would save the same records again.
                    with anyio.CancelScope(shield=True):
                        await self._worker.run(self._save_chunk, chunk)
                        del self.unsaved[: len(chunk)]
            except errors.StorageFailed:
                self._failing = True
                raise
            self._failing = False

    def _save_chunk(self, chunk: Sequence[sqlite_rows.Entry]) -> None:
        self._store.commit(chunk, promised=True)

    async def finish(self) -> None:
        await self.save()
        if self._marked:
            await self._worker.run(self._store.write_meta, {"state": "clean"})
