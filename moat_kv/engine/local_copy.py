"""A server's own copy of a shared tree, kept while it serves; and its outbox.

`engine.network` loads it at start, tells it of every record that was applied, and gives it the
plain writes that it takes while the engine is out of reach. What is put into the outbox is answered
when it is on disk; many of them share a sync. Entries follow within `DELAY_S`: a crash costs no
more than reading them from the engine again.
"""

from __future__ import annotations

import logging
import pathlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from moat_kv import errors
from moat_kv.engine import copy_store, file_errors, sqlite_connection, sqlite_lock, worker
from moat_kv.engine.copy_store import Pending, State
from moat_kv.entry import SYSTEM, Record
from moat_kv.path import Path

_log = logging.getLogger(__name__)

#: Entries are on disk so many seconds after they were applied, at the latest...
DELAY_S = 1.0
#: ...or when so many wait. More wait only while the disk is slower than the engine.
ENOUGH = 5_000
#: After a failure to write, the next attempt comes so many seconds later.
RETRY_S = 1.0
#: So many entries are read at once when the copy is loaded.
SLICE = 2_000
#: So many writes go from or to the outbox in one transaction.
GROUP = 2_000

#: Below it is what servers keep of themselves.
_SYSTEM = Path(SYSTEM)

Kept = Callable[[errors.MoatKvError | None], None]
"""Told that a write is in the outbox, or StorageFailed. Called in the event loop."""


class LocalCopy:
    """The copy in `file`, whose folder is made if it is not there."""

    def __init__(
        self,
        file: pathlib.Path,
        *,
        connect: sqlite_connection.Connect = sqlite_connection.connect,
        delay_s: float = DELAY_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._file = file
        self._connect = connect
        self._delay_s = delay_s
        self._retry_s = retry_s
        #: What is on disk is the tree at `state.revision`, once all that waits is written.
        self.state = State()
        #: What was answered and is not in the engine yet, by path, oldest first; as on disk.
        self.outbox: dict[Path, Pending] = {}
        #: Why the copy cannot be written, or None.
        self.trouble: str | None = None
        self._clear = False
        self._records: dict[Path, Record] = {}
        self._puts: deque[tuple[Pending, Kept]] = deque()
        self._drops: list[Pending] = []
        self._is_state_due = False
        self._wake = anyio.Event()
        self._enough = anyio.Event()
        self._open = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the file and write to it until left; then what waits is written.

        Raises StorageDamaged, StorageBusy, StorageFailed.
        """
        lock = sqlite_lock.FileLock(self._file)
        self._worker = worker.Worker("moat-kv copy")
        self._store = copy_store.CopyStore(self._connect, self._file)
        try:
            await self._worker.run(self._prepare, lock)
            self.state = await self._worker.run(self._store.open)
            self.outbox = {each.path: each for each in await self._worker.run(self._store.pending)}
            async with self._writing():
                yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._worker.run(self._store.close)
                await self._worker.run(lock.release)
            self._worker.close()

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        self._open = True
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._run)
                try:
                    yield
                finally:
                    self._open = False
                    tasks.cancel_scope.cancel()
        finally:
            # However it was left: a server ends by being cancelled.
            with anyio.CancelScope(shield=True):
                await self._finish()

    def _prepare(self, lock: sqlite_lock.FileLock) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            reason = file_errors.reason_of(exc, self._file)
            raise errors.StorageFailed(str(self._file), reason) from exc
        lock.acquire()

    async def heads(self) -> AsyncIterator[Sequence[Record]]:
        """All entries, in the order of revisions, in slices. Before anything is written.

        Raises StorageDamaged, after which `restart` is due; what was handed out is then worthless.
        """
        while records := await self._worker.run(self._store.heads, SLICE):
            yield records

    # The copy -----------------------------------------------------------------------------------

    def applied(self, records: Sequence[Record], state: State) -> None:
        """These records have been applied, and the tree is now what `state` says."""
        for record in records:
            self._records[record.path] = record
        self.state = state
        self._is_state_due = True
        # Leases are renewed every few seconds; by themselves they are not worth a sync, so that the
        # disk of an idle server rests.
        if not records or not all(record.path[:1] == _SYSTEM for record in records):
            self._wake.set()
        if len(self._records) >= ENOUGH:
            self._enough.set()

    def restart(self) -> None:
        """The copy is worthless: forget it, but not the outbox. Then `applied`, from the start."""
        self._records.clear()
        self._clear = True
        self.state = State()
        self._is_state_due = True
        self._wake.set()

    # The outbox ---------------------------------------------------------------------------------

    def put(self, pending: Pending, kept: Kept) -> None:
        """Take a write in the place of what the outbox has for its path."""
        if not self._open:
            kept(errors.StorageFailed(str(self._file), "it is closed"))
            return
        self._puts.append((pending, kept))
        self._wake.set()
        self._enough.set()

    def drop(self, pending: Pending) -> None:
        """This write is in the engine, or among the conflicts; a newer one for its path stays."""
        self._forget(pending)
        self._drops.append(pending)
        self._wake.set()

    def _forget(self, pending: Pending) -> None:
        if self.outbox.get(pending.path) == pending:
            del self.outbox[pending.path]

    # Writing ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            with anyio.move_on_after(self._delay_s):
                await self._enough.wait()
            self._wake, self._enough = anyio.Event(), anyio.Event()
            with anyio.CancelScope(shield=True):
                failure = await self._write_all()
            self._report(failure)
            if failure is not None:
                self._wake.set()
                await anyio.sleep(self._retry_s)

    async def _write_all(self) -> errors.StorageFailed | None:
        """Write what waits, the outbox first; why that failed, or None."""
        while self._puts:
            group = [self._puts.popleft() for _ in range(min(GROUP, len(self._puts)))]
            newest: dict[Path, Pending] = {}
            for pending, _kept in group:
                _put_last(newest, pending)
            try:
                changes = copy_store.Changes(puts=list(newest.values()))
                await self._worker.run(self._store.write, changes)
            except errors.StorageFailed as exc:
                for _pending, kept in group:
                    kept(exc)
                return exc
            for pending in newest.values():
                _put_last(self.outbox, pending)
            for pending in self._drops:  # one that was there by another way before it was here
                self._forget(pending)
            for _pending, kept in group:
                kept(None)
        return await self._write_copy()

    async def _write_copy(self) -> errors.StorageFailed | None:
        if not (self._records or self._drops or self._is_state_due):
            return None
        changes = copy_store.Changes(
            records=list(self._records.values()),
            state=self.state if self._is_state_due else None,
            drops=self._drops,
            clear=self._clear,
        )
        records, drops, clear = self._records, self._drops, self._clear
        self._records, self._drops, self._clear, self._is_state_due = {}, [], False, False
        try:
            await self._worker.run(self._store.write, changes)
        except errors.StorageFailed as exc:
            # Again later, together with what has come meanwhile.
            self._records = records | self._records if not self._clear else self._records
            self._drops = drops + self._drops
            self._clear = clear or self._clear
            self._is_state_due = True
            return exc
        return None

    async def _finish(self) -> None:
        failure = await self._write_all()
        if failure is not None:
            _log.error("the end of the copy in %s is missing: %s", self._file, failure.reason)

    def _report(self, failure: errors.StorageFailed | None) -> None:
        trouble = None if failure is None else str(failure.reason)
        if trouble != self.trouble:
            if trouble is not None:
                _log.error("cannot write to %s: %s", self._file, trouble)
            else:
                _log.info("writing to %s again", self._file)
            self.trouble = trouble


def _put_last(outbox: dict[Path, Pending], pending: Pending) -> None:
    outbox.pop(pending.path, None)
    outbox[pending.path] = pending
