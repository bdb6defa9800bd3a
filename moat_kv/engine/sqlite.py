"""The embedded engine: one SQLite file, one server, writes committed in groups.

A server starts one with its tree (`base.Replica`) and submits groups of writes.
`sqlite_committing` has `judge.Judge` decide on everything that waits and hands what is admitted to
a `sqlite_saving.Saver`; that has `sqlite_store` write and sync it in the worker thread. Only then
are records applied, and groups answered. The event loop never touches the file.
"""

from __future__ import annotations

import gc
import logging
import os
import pathlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

import anyio
import anyio.abc
import anyio.lowlevel

from moat_kv import errors
from moat_kv.engine import (
    base,
    file_errors,
    sqlite_committing,
    sqlite_compact,
    sqlite_connection,
    sqlite_lock,
    sqlite_open,
    sqlite_saving,
    sqlite_store,
    worker,
)
from moat_kv.entry import Record, Write
from moat_kv.path import Path

_log = logging.getLogger(__name__)

#: So many records are read at once, at start and by `records`; applying them takes some 5 ms.
SLICE = 2_000
#: So often, in seconds, a log on a full disk looks for room.
ROOM_S = 0.5
#: A disk that was not full for so long, in seconds, is one that runs full anew.
CALM_S = 60.0


@contextmanager
def _no_collections() -> Iterator[None]:
    """Hold off the cyclic garbage collector: a tree that grows makes none, and the collections
    over what is there already would take twice as long as loading it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class SqliteEngine(base.Engine):
    """`base.Engine` in the file `file`, which is made if it is not there, its folder too.

    `sync`: "always" (a write is on disk before it is answered), or after how many seconds at most
    it is; then an unclean end may lose as much, and the epoch changes. `history`: how many records
    of a path are kept at least (1 or more; up to `compact_after` more until they are dropped).
    `tombstone_s`: after how many seconds a deletion may be forgotten. `compact_after`: how many
    records have to become droppable before it is worth the while. `full_check`: look at every page
    and index at start, however large the file. `connect` opens the database, `clock` gives seconds
    since 1970.
    """

    def __init__(
        self,
        file: pathlib.Path,
        *,
        sync: Literal["always"] | float = "always",
        history: int = 10,
        tombstone_s: float = 3600.0,
        compact_after: int = 1_000,
        full_check: bool = False,
        connect: sqlite_connection.Connect = sqlite_connection.connect,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if history < 1:
            raise errors.BadConfig("history", "at least 1")
        if sync != "always" and not 0 < sync < float("inf"):
            raise errors.BadConfig("sync", "`always`, or a number of seconds above 0")
        self._file = pathlib.Path(file).absolute()
        self._sync: float | None = None if sync == "always" else sync
        self._history = history
        self._tombstone_s = tombstone_s
        self._compact_after = compact_after
        self._full_check = full_check
        self._connect = connect
        self._clock = clock
        self.trouble = None
        self._at = 0.0
        self._records = 0
        self._commits = 0
        #: From the first step of `running` to its last one.
        self._running = False
        #: Groups are taken.
        self._open = False

    # Opening and closing ------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, replica: base.Replica) -> AsyncIterator[None]:
        """See `base.Engine.running`. StorageFailed on leaving too, if `sync` is in seconds and what
        was answered last cannot be saved.
        """
        if self._running:
            raise RuntimeError("this engine is running already")
        self._running = True
        # Set while the disk is full.
        self._short = anyio.Event()
        self._short_at = float("-inf")
        lock = sqlite_lock.FileLock(self._file)
        self._worker = worker.Worker("moat-kv log")
        self._store = sqlite_store.SqliteStore(self._connect, self._file)
        try:
            await self._worker.run(self._prepare, lock)
            self._replica = replica
            self._compactor = sqlite_compact.Compactor(
                self._store,
                self._worker,
                replica,
                history=self._history,
                tombstone_s=self._tombstone_s,
                after=self._compact_after,
                clock=self._clock,
                revision=lambda: self.revision,
                raise_floor=self._raise_floor,
            )
            await self._load()
            async with self._serving():
                yield
        finally:
            self._open = False
            with anyio.CancelScope(shield=True):
                await self._worker.run(self._store.close)
                await self._worker.run(lock.release)
            self._worker.close()
            self._running = False

    def _prepare(self, lock: sqlite_lock.FileLock) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            if self._file.exists():
                # SQLite's own words for a file that cannot be written mean something else.
                os.close(os.open(self._file, os.O_RDWR))
        except OSError as exc:
            reason = file_errors.reason_of(exc, self._file)
            raise errors.StorageFailed(str(self._file), reason) from exc
        if not self._file.exists():
            sqlite_open.create(self._connect, self._file)

    async def _load(self) -> None:
        """Read the log into the replica, then open it for writing."""
        run = self._worker.run
        with anyio.CancelScope(shield=True):  # who abandoned it could not close it
            reading = await run(self._reading)
        try:
            meta: sqlite_open.Meta = await run(reading.meta)
            self.floor = meta.floor
            self._compactor.trimmed = meta.compacted
            if meta.floor:
                self._replica.compacted(meta.floor)
            with _no_collections():
                while records := await run(reading.heads, SLICE):
                    self._replica.apply(records)
                    self._at = max(self._at, records[-1].at)
                    await anyio.lowlevel.checkpoint()
        finally:
            with anyio.CancelScope(shield=True):
                await run(reading.close)
        self.epoch, self.revision, self._records = meta.epoch, meta.revision, meta.records
        due: dict[str, Any] = {}
        if meta.relaxed:
            self.epoch = sqlite_open.new_epoch()
            self.revision += sqlite_saving.SKIPPED_REVISIONS
            due = {"epoch": self.epoch, "revision": self.revision, "state": "clean"}
        self._report(await run(self._open_store, meta.revision, not reading.has_wal, due))
        if self._store.low:
            self._note_shortage(self.revision)
        self._compactor.note(meta.uncompacted)

    def _reading(self) -> sqlite_open.Reading:
        return sqlite_open.Reading(self._connect, self._file, full_check=self._full_check)

    def _open_store(self, saved: int, clean: bool, due: dict[str, Any]) -> str | None:
        return self._store.open(saved, clean=clean, due=due)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        try:
            async with anyio.create_task_group() as tasks:
                self._saver = self._make_saver(tasks)
                self._committer = self._make_committer()
                self._open = True
                tasks.start_soon(self._saver.run)
                tasks.start_soon(self._compactor.run)
                tasks.start_soon(self._make_room)
                tasks.start_soon(self._commit, tasks.cancel_scope)
                try:
                    yield
                finally:
                    # The task finishes what was submitted before it sees this, and ends the rest.
                    self._open = False
                    self._committer.close()
        finally:
            with anyio.CancelScope(shield=True):
                await self._saver.finish()

    def _make_saver(self, tasks: anyio.abc.TaskGroup) -> sqlite_saving.Saver:
        if self._sync is None:
            return sqlite_saving.AtOnce(self._store, self._worker)
        return sqlite_saving.Later(
            self._store,
            self._worker,
            delay_s=self._sync,
            report=self._report,
            start_soon=tasks.start_soon,
        )

    def _make_committer(self) -> sqlite_committing.Committer:
        return sqlite_committing.Committer(
            self._replica,
            self._saver,
            given=self.revision,
            at=self._at,
            clock=self._clock,
            applied=self._applied,
            failed=self._failed,
        )

    # Writing ------------------------------------------------------------------------------------

    def submit(self, writes: Sequence[Write], done: base.Done) -> None:
        if not self._open:
            raise RuntimeError("this engine is not running")
        self._committer.submit(writes, done)

    async def _commit(self, background: anyio.CancelScope) -> None:
        await self._committer.run()
        background.cancel()

    def _applied(self, records: Sequence[Record], prevs: Sequence[int]) -> None:
        self.revision = records[-1].rev
        if not self._store.is_short:
            self._report(None)
        else:
            self._note_shortage(records[0].rev - 1)
            if self._store.low:
                self._report(str(self._store.shortage().reason))
        self._commits += 1
        self._records += len(records)
        # Deletions are among them: each has something before it.
        self._compactor.note(len(prevs) - prevs.count(0))

    def _failed(self, failure: errors.StorageFailed) -> None:
        self._report(str(failure.reason))
        if self._store.is_short:
            self._note_shortage(self.revision)

    def _note_shortage(self, before: int) -> None:
        now = time.monotonic()
        if now - self._short_at > CALM_S:
            self._compactor.bury_above(before)
        self._short_at = now
        self._short.set()

    async def _make_room(self) -> None:
        """While the disk is full, make room on it as far as the log can, until cancelled."""
        while True:
            await self._short.wait()
            self._short = anyio.Event()
            try:
                await self._compactor.make_room()
            except errors.EngineError as exc:
                _log.debug("making room: %s", exc)
            if self._store.is_short:
                self._note_shortage(self.revision)
            else:
                self._report(None)
            await anyio.sleep(ROOM_S)

    def _raise_floor(self, floor: int) -> None:
        self.floor = floor
        self._replica.compacted(floor)

    def _report(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            if trouble is not None and self.trouble is not None:
                _log.debug("still cannot write to %s: %s", self._file, trouble)
            elif trouble is not None:
                _log.error("cannot write to %s: %s", self._file, trouble)
            else:
                _log.info("writing to %s again", self._file)
            self.trouble = trouble

    # Reading ------------------------------------------------------------------------------------

    async def history(self, path: Path, *, limit: int, before: int | None = None) -> list[Record]:
        head = self._replica.head(path)
        if head is None:
            return []
        unsaved = [entry for entry in self._saver.unsaved if entry[0].path == path]
        newest = unsaved[0][1] if unsaved else head.rev
        before = self.revision + 1 if before is None else before
        found = [record for record, _ in reversed(unsaved) if record.rev < before][:limit]
        if len(found) < limit:
            found += await self._worker.run(
                self._store.history, path, newest, before, limit - len(found)
            )
        return found

    async def records(self, since: int) -> AsyncIterator[Sequence[Record]]:
        unsaved = [record for record, _ in self._saver.unsaved if record.rev > since]
        until = unsaved[0].rev - 1 if unsaved else self.revision
        while found := await self._worker.run(self._store.records, since, until, SLICE):
            yield found
            since = found[-1].rev
        if unsaved:
            yield unsaved

    async def compact(self) -> int:
        await self._saver.save()
        await self._compactor.compact()
        return self.floor

    def send(self, topic: Path, data: bytes) -> None:
        self._replica.message(topic, data)

    def describe(self) -> dict[str, Any]:
        """`kind`, `place`, `size_bytes` (on disk), `records` (kept in the file), `commits` (since
        the start), `commits_s` (what they took together), `committed_at` (when the last one
        was on disk, seconds since 1970), `waiting` (groups), `unsaved` (records), `sync` ("always"
        or seconds), `history`, `sqlite` (its version).
        """
        size = 0
        for suffix in ("", "-wal"):
            place = self._file.with_name(self._file.name + suffix)
            # Only ever ask for its state: closing a descriptor of the file would end SQLite's lock.
            size += place.stat().st_size if place.exists() else 0
        return {
            "kind": "sqlite",
            "place": str(self._file),
            "size_bytes": size,
            "records": self._records - self._compactor.dropped,
            "commits": self._commits,
            "commits_s": round(self._store.commits_s, 6),
            "committed_at": self._store.committed_at,
            "waiting": self._committer.waiting,
            "unsaved": len(self._saver.unsaved),
            "sync": "always" if self._sync is None else self._sync,
            "history": self._history,
            "sqlite": sqlite3.sqlite_version,
        }
