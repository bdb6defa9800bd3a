"""The SQL of a log that is being written: commits, history, compaction.

`engine.sqlite` calls this in its worker thread, one call at a time; nothing here knows of the event
loop. A row's `prev` is the revision of the path's record before it. So a path's records are a chain
that is followed from the newest one, which the tree knows, by the log's own key; the log needs no
second index, and a commit writes to the file's end only. Compaction always drops a chain's older
end, so a chain has no holes.

When a commit fails
-------------------
The group is answered with StorageFailed and SQLite has rolled it back, but if it was the fsync that
failed, its pages lie in the WAL, a complete commit to look at. The operating system reports a
failed fsync once and may then take the pages for clean although the disk does not have them: a
later fsync that succeeds says nothing about them. They must be written again or never be read. So:

1. The connection stays open. It knows where the last good commit ends and writes the next one over
   the doubtful pages. A new connection would find the doubtful commit, take it for good, and copy
   it into the file while the WAL on disk ends before it: a power failure then leaves a file that
   is half of either state. (Found so in 1 of 1,500 simulated power cuts.)
2. Before the next commit what is good in the WAL is moved into the file, the file synced, and the
   WAL emptied (`wal_checkpoint(TRUNCATE)`). So in one WAL at most one commit has failed, the last.
3. Records above the last one that was answered are deleted: there are some if the commit had
   succeeded after all and only what came after it failed.

If any of this fails, so does the next group, and it is begun anew with the group after it. The
engine never uses the revisions of a failed group again. If the process dies between the failure
and step 2, whoever opens the log next may find the group: whole, as the last one, under revisions
that were never given out; it then counts as written. Because its pages may be such that no fsync
covers, the next process writes the WAL anew, byte for byte, and syncs it before anything else.
`sqlite_bytes.wal_fault` relies on step 2, and on each commit being synced before the next.

When the disk is full
---------------------
What makes room may spend the reserve (`sqlite_reserve`): step 2, deletions, compaction. From then
on (`low`) nothing is taken but deletions, until there is enough room for a reserve again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from moat_kv import errors
from moat_kv.engine import sqlite_connection, sqlite_open, sqlite_reserve, sqlite_rows
from moat_kv.entry import Record
from moat_kv.path import Path

_log = logging.getLogger(__name__)

T = TypeVar("T")

_COLUMNS = ", ".join(sqlite_rows.COLUMNS)

_CHAIN = (
    "WITH RECURSIVE chain (at_rev, older) AS ("
    " SELECT rev, prev FROM log WHERE rev = ?"
    " UNION ALL SELECT rev, prev FROM chain JOIN log ON rev = older) "
)
_HISTORY = (
    f"{_CHAIN} SELECT {_COLUMNS} FROM chain JOIN log ON rev = at_rev"
    " WHERE rev < ? ORDER BY rev DESC LIMIT ?"
)

# Per path only the newest of these rows is followed down; what it does not reach has been dropped.
_TRIM = """
WITH RECURSIVE
  slice (rev, prev) AS (SELECT rev, prev FROM log WHERE rev > ?1 AND rev <= ?2 AND prev > 0),
  chain (at_rev, older, place) AS (
    SELECT rev, prev, 1 FROM slice WHERE rev NOT IN (SELECT prev FROM slice)
    UNION ALL SELECT log.rev, log.prev, place + 1 FROM chain JOIN log ON log.rev = older)
DELETE FROM log WHERE rev IN (SELECT at_rev FROM chain WHERE place > ?3)
"""
_FORGET = """
WITH RECURSIVE chain (at_rev, older) AS (
    SELECT rev, prev FROM log WHERE rev IN (SELECT value FROM json_each(?1))
    UNION ALL SELECT rev, prev FROM chain JOIN log ON rev = older)
DELETE FROM log WHERE rev IN (SELECT at_rev FROM chain)
"""
#: So much is room enough to try again, beside the reserve.
_ROOM_BYTES = 1 << 20
_BURY = f"{_FORGET.rstrip()} AND rev NOT IN (SELECT value FROM json_each(?1))"


class SqliteStore:
    """A log opened for writing. Every method may raise StorageFailed; those that read records also
    StorageDamaged.
    """

    def __init__(self, connect: sqlite_connection.Connect, file: pathlib.Path) -> None:
        self._connect = connect
        self._file = file
        #: The file, for messages.
        self.place = str(file)
        self._connection: sqlite_connection.Connection | None = None
        #: The file's end is `saved` for certain, and the WAL holds nothing doubtful.
        self._ready = False
        #: The WAL is that of a process that did not close the log.
        self._inherited = False
        #: The last revision that is durable; reading goes up to it.
        self.saved = 0
        #: How long all commits have taken together, in seconds.
        self.commits_s = 0.0
        #: When the last one was on disk, in seconds since 1970; 0: there was none yet.
        self.committed_at = 0.0
        #: What `meta` has to say before the next commit.
        self._due: dict[str, Any] = {}
        self._reserve = sqlite_reserve.Reserve(file)
        self._reserve_tried = False
        #: The reserve has been spent: only deletions are taken.
        self.low = False
        #: The last commit with values found no room.
        self.full = False

    def open(self, saved: int, *, clean: bool, due: Mapping[str, Any]) -> str | None:
        """Open the log, whose last revision is `saved`; why it cannot be written yet, or None.

        `clean`: it was closed properly. `due`: what to store in `meta` before anything else.
        """
        self.saved = saved
        self._due.update(due)
        self._inherited = not clean
        self._ready = clean and not due
        self._reserve.adopt()
        with sqlite_connection.writing(self._file):
            self._connection = sqlite_connection.open_log(self._connect, self._file)
        if not self._ready:
            try:
                self._make_ready()
            except errors.StorageFailed as exc:
                return str(exc.reason)
        return None

    def close(self) -> None:
        """Close the log. SQLite moves what the WAL holds into the file, if it can."""
        if self._connection is not None:
            sqlite_connection.close(self._connection)
            self._connection = None
            self._reserve.release()

    # Room ---------------------------------------------------------------------------------------

    def shortage(self) -> errors.StorageFailed:
        """Why nothing but deletions is taken while `low`."""
        megabytes = -(-self._reserve.size_bytes // (1 << 20))
        reason = (
            f"the disk is full: only deletions are taken until {megabytes} MB are free on it; "
            "make room there, or delete entries"
        )
        return errors.StorageFailed(self.place, reason)

    @property
    def is_short(self) -> bool:
        """There is no room for values, as far as is known."""
        return self.low or self.full

    def regain(self) -> None:
        """Give back what the WAL takes, and see whether there is room again."""
        self._make_ready()
        self._end_shortage()
        if not self.low and self._reserve.has_beside(_ROOM_BYTES):
            self.full = False

    def require_room(self) -> None:
        """Raises StorageFailed if nothing but deletions is taken."""
        self._end_shortage()
        if self.low:
            raise self.shortage()

    def _end_shortage(self) -> None:
        if self.low and self._reserve.take():
            self.low = False
            sqlite_connection.set_wal_pages(self._opened(), sqlite_connection.WAL_PAGES)

    def _making_room(self, work: Callable[[], T]) -> T:
        """Do what may spend the reserve."""
        try:
            return work()
        except errors.StorageFailed as exc:
            if not _is_full(exc) or not self._reserve.release():
                raise
            self.low = True
            sqlite_connection.set_wal_pages(self._opened(), sqlite_connection.WAL_PAGES_LOW)
        return work()

    # Writing ------------------------------------------------------------------------------------

    def commit(self, entries: Sequence[sqlite_rows.Entry], *, promised: bool = False) -> None:
        """Add records, in the order of their revisions; they are on disk when this returns.

        `promised`: they were answered already, and may spend the reserve as deletions do.
        """
        if not self._reserve_tried:
            # Not at start: a log that nobody writes to stays as it is.
            self._reserve_tried = True
            self._reserve.take(spare=sqlite_reserve.SPARE)
        if promised or all(record.value is None for record, _ in entries):
            self._making_room(lambda: self._commit(entries))
            return
        try:
            if not self._ready:
                self._make_ready()
            self.require_room()
            self._commit(entries)
        except errors.StorageFailed as exc:
            self.full = self.low or _is_full(exc)
            raise
        self.full = False

    def _commit(self, entries: Sequence[sqlite_rows.Entry]) -> None:
        began = time.perf_counter()
        parts = sqlite_rows.parted(entries)
        # Outside of a transaction a statement is one by itself.
        with self._committing() if len(parts) == 1 else self._transaction() as connection:
            for values in parts:
                connection.execute(
                    sqlite_rows.INSERT[len(values) // len(sqlite_rows.COLUMNS)], values
                )
        self.saved = entries[-1][0].rev
        self.commits_s += time.perf_counter() - began
        self.committed_at = time.time()

    def write_meta(self, values: Mapping[str, Any]) -> None:
        with self._transaction() as connection:
            sqlite_rows.set_meta(connection, values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite_connection.Connection]:
        with self._committing() as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _committing(self) -> Iterator[sqlite_connection.Connection]:
        """Whatever is written within is durable at the end, or it has not happened."""
        if not self._ready:
            self._make_ready()
        try:
            with sqlite_connection.writing(self._file):
                yield self._opened()
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Step 1 of what the module says about a commit that failed."""
        self._ready = False
        connection = self._opened()
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except Exception as exc:
                if not sqlite_connection.is_sqlite_error(exc):
                    raise
                _log.debug("rolling back %s: %s", self._file, exc)  # it is rolled back all the same

    def _make_ready(self) -> None:
        """Steps 2 and 3 of what the module says about a commit that failed."""
        self._making_room(self._try_to_make_ready)

    def _try_to_make_ready(self) -> None:
        connection = self._opened()
        try:
            with sqlite_connection.writing(self._file):
                if self._inherited:
                    sqlite_open.renew_wal(self._file)
                    self._inherited = False
                ((blocked, *_),) = sqlite_connection.all_rows(
                    connection, "PRAGMA wal_checkpoint(TRUNCATE)"
                )
                if blocked:
                    raise errors.StorageFailed(str(self._file), "its write-ahead log is in use")
                beyond = sqlite_connection.all_rows(
                    connection, "SELECT 1 FROM log WHERE rev > ? LIMIT 1", (self.saved,)
                )
                if beyond or self._due:
                    connection.execute("BEGIN")
                    connection.execute("DELETE FROM log WHERE rev > ?", (self.saved,))
                    sqlite_rows.set_meta(connection, self._due)
                    connection.execute("COMMIT")
        except BaseException:
            self._give_up()
            raise
        self._due.clear()
        self._ready = True

    def _opened(self) -> sqlite_connection.Connection:
        if self._connection is None:
            raise RuntimeError("the log is not open")
        return self._connection

    # Reading ------------------------------------------------------------------------------------

    def history(self, path: Path, head: int, before: int, limit: int) -> list[Record]:
        """A path's records from revision `head` downwards, newest first, those below `before`."""
        rows = self._rows(_HISTORY, (head, before, limit))
        if any(record.path != path for record in rows):
            raise errors.StorageDamaged(
                str(self._file), f"records of {path} lead to those of another path"
            )
        return rows

    def records(self, since: int, until: int, limit: int) -> list[Record]:
        """The next kept records above `since`, up to `until`, in order."""
        sql = f"SELECT {_COLUMNS} FROM log WHERE rev > ? AND rev <= ? ORDER BY rev LIMIT ?"
        return self._rows(sql, (since, until, limit))

    def _rows(self, sql: str, parameters: Sequence[Any]) -> list[Record]:
        try:
            rows = sqlite_connection.all_rows(self._opened(), sql, parameters)
            return [sqlite_rows.record_of(row) for row in rows]
        except sqlite_rows.BadRow as exc:
            raise errors.StorageDamaged(str(self._file), str(exc), hint=sqlite_open.HINT) from exc
        except Exception as exc:
            if not sqlite_connection.is_sqlite_error(exc):
                raise
            raise sqlite_connection.translated(exc, self._file, sqlite_open.HINT) from exc

    # Compaction, in slices ----------------------------------------------------------------------

    def trim(self, above: int, rows: int, keep: int) -> tuple[int, int]:
        """Of the paths written by the next rows above a revision, drop all but `keep` records.

        Returns the revision up to which that is done (`above` itself: there is nothing more), and
        how many records were dropped.
        """
        with sqlite_connection.writing(self._file):
            ((until,),) = sqlite_connection.all_rows(
                self._opened(),
                "SELECT max(rev) FROM"
                " (SELECT rev FROM log WHERE rev > ? AND rev <= ? ORDER BY rev LIMIT ?)",
                (above, self.saved, rows),
            )
        if until is None:
            return above, 0
        return until, self._drop(_TRIM, (above, until, keep), {"compacted": until})

    def tombstones(self, above: int, limit: int) -> list[Record]:
        """The next deletions above a revision, in order, those that were written over too."""
        sql = (
            f"SELECT {_COLUMNS} FROM log WHERE value IS NULL AND rev > ? AND rev <= ?"
            " ORDER BY rev LIMIT ?"
        )
        return self._rows(sql, (above, self.saved, limit))

    def forget(self, tombstones: Sequence[int], revision: int) -> int:
        """Drop deletions with all older records of their paths; how many records went.

        The floor becomes the last of them. `revision` is remembered, for it may be among them.
        """
        meta = {"floor": max(tombstones), "revision": revision}
        return self._drop(_FORGET, (json.dumps(list(tombstones)),), meta)

    def bury(self, tombstones: Sequence[int]) -> int:
        """Drop all older records of deleted paths; how many went. The deletions stay."""
        return self._drop(_BURY, (json.dumps(list(tombstones)),), {})

    def _drop(self, sql: str, parameters: Sequence[Any], meta: Mapping[str, Any]) -> int:
        return self._making_room(lambda: self._try_to_drop(sql, parameters, meta))

    def _try_to_drop(self, sql: str, parameters: Sequence[Any], meta: Mapping[str, Any]) -> int:
        with self._transaction() as connection:
            connection.execute(sql, parameters)
            ((dropped,),) = sqlite_connection.all_rows(connection, "SELECT changes()")
            if dropped and meta:  # else there is nothing worth a write
                sqlite_rows.set_meta(connection, meta)
        return int(dropped)

    def shrink(self, pages: int, *, few: bool = False) -> bool:
        """Give so many free pages back to the file system if many are free; whether it did.

        `few`: also if few are.
        """
        with sqlite_connection.writing(self._file):
            connection = self._opened()
            ((free,),) = sqlite_connection.all_rows(connection, "PRAGMA freelist_count")
            ((used,),) = sqlite_connection.all_rows(connection, "PRAGMA page_count")
        # Less is soon written to again.
        if free < (1 if few else max(1_000, used // 4)):
            return False
        self._making_room(lambda: self._give_back(pages))
        return True

    def _give_back(self, pages: int) -> None:
        with self._transaction() as connection:
            sqlite_connection.all_rows(connection, f"PRAGMA incremental_vacuum({pages})")


def _is_full(exc: errors.StorageFailed) -> bool:
    cause = exc.__cause__
    return cause is not None and sqlite_connection.code_of(cause) == sqlite_connection.FULL
