"""Making a log's file, and reading an existing one at start without touching it.

Called by `engine.sqlite` in the worker thread, with the file's lock held. A file that is damaged is
refused with StorageDamaged and stays as it is, byte for byte. A file is made under another name and
then renamed, so an empty one, or one without tables, is never the trace of an interrupted start.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from dataclasses import dataclass
from itertools import islice
from typing import Any

from moat_kv import errors
from moat_kv.engine import file_errors, sqlite_bytes, sqlite_connection, sqlite_rows
from moat_kv.entry import Record

HINT = (
    "it is left as it is: keep it, start with a new file, "
    "and bring back what was saved with `moat kv log restore`"
)

#: A larger file is not checked page by page at start, unless asked for: 100 MB take 0.2 s.
_CHECK_LIMIT_BYTES = 1 << 30

_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID",
    # No index on the path: it would cost one page written anew for each record, twenty times as
    # many bytes a commit. `prev` leads from a path's newest record to its older ones instead.
    "CREATE TABLE log (rev INTEGER PRIMARY KEY, prev INTEGER NOT NULL, path BLOB NOT NULL,"
    " value BLOB, at REAL NOT NULL, origin TEXT NOT NULL, tick INTEGER NOT NULL,"
    " session TEXT, expires_at REAL, crc INTEGER NOT NULL)",
    "CREATE INDEX tombstone ON log (rev) WHERE value IS NULL",
)
#: How SQLite lists them.
_TABLE_ROWS = {
    ("table", "meta", "meta", _TABLES[0]),
    ("table", "log", "log", _TABLES[1]),
    ("index", "tombstone", "log", _TABLES[2]),
}

_SETTINGS = (
    "PRAGMA page_size=4096",
    # Compaction gives pages back in small steps; without this the file never shrinks.
    "PRAGMA auto_vacuum=INCREMENTAL",
    f"PRAGMA application_id={sqlite_bytes.APPLICATION_ID}",
    f"PRAGMA user_version={sqlite_bytes.SCHEMA}",
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=ON",
)

#: The newest record of each path: nothing comes after it.
_HEADS = (
    f"SELECT {', '.join(sqlite_rows.COLUMNS)} FROM log"
    " WHERE rev NOT IN (SELECT prev FROM log WHERE prev > 0) ORDER BY rev"
)
#: Superseded rows are not read at start, so their checksums are not looked at. One whose `prev` is
#: wrong would hide the newest record of another path: it is not the newest then, to `_HEADS`.
_MISLED = (
    "SELECT log.rev FROM log JOIN log AS former ON former.rev = log.prev"
    " WHERE log.path != former.path OR log.prev >= log.rev LIMIT 1"
)


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a log says of itself."""

    epoch: str
    revision: int
    """The last one that was given out, as far as the file knows."""
    floor: int
    compacted: int
    """Records up to this one have been looked at by compaction."""
    relaxed: bool
    """Records may have been answered that the file does not have."""
    records: int
    uncompacted: int
    """How many records above `compacted` replaced an older one, or deleted."""


def create(connect: sqlite_connection.Connect, file: pathlib.Path) -> None:
    """Make a new, empty log. Raises StorageFailed, StorageDamaged."""
    if _wal_of(file).exists():
        # SQLite would play it into the new file.
        raise errors.StorageDamaged(
            str(file), "its write-ahead log is there, but the file itself is not", hint=HINT
        )
    new = file.with_name(file.name + ".new")
    try:
        # What an interrupted start left behind; nobody can have written to it.
        for suffix in ("", "-wal", "-journal"):
            new.with_name(new.name + suffix).unlink(missing_ok=True)
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = connect(str(new))
        try:
            for statement in (*_SETTINGS, "BEGIN", *_TABLES):
                sqlite_connection.all_rows(connection, statement)
            sqlite_rows.set_meta(connection, {"epoch": new_epoch(), "floor": 0, "revision": 0})
            sqlite_connection.all_rows(connection, "COMMIT")
            sqlite_connection.all_rows(connection, "PRAGMA journal_mode=WAL")
        finally:
            connection.close()
        new.rename(file)
        sync_folder(file.parent)
    except OSError as exc:
        raise errors.StorageFailed(str(file), file_errors.reason_of(exc, file)) from exc
    except Exception as exc:
        if not sqlite_connection.is_sqlite_error(exc):
            raise
        raise errors.StorageFailed(str(file), sqlite_connection.reason_of(exc)) from exc


def new_epoch() -> str:
    return secrets.token_hex(8)


def sync_folder(folder: pathlib.Path) -> None:
    """Make a rename in this folder survive a power failure. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def renew_wal(file: pathlib.Path) -> None:
    """Write the WAL that another process left, byte for byte, and sync it. Raises OSError.

    Some of it may be in the system's cache only, and clean there, if a sync failed before that
    process died; only what is written again will reach the disk.
    """
    with contextlib.suppress(FileNotFoundError), _wal_of(file).open("r+b", buffering=0) as stream:
        position = 0
        while data := os.pread(stream.fileno(), 1 << 20, position):
            position += os.pwrite(stream.fileno(), data, position)
        os.fsync(stream.fileno())


class Reading:
    """An existing log while it is checked and read. Close it before anything is written.

    Raises StorageDamaged, StorageBusy, StorageFailed from each method.
    """

    def __init__(
        self, connect: sqlite_connection.Connect, file: pathlib.Path, *, full_check: bool
    ) -> None:
        self._file = file
        self._alias: pathlib.Path | None = None
        self._connection: sqlite_connection.Connection | None = None
        self._heads: sqlite_connection.Cursor | None = None
        #: Whether the file's last user did not close it.
        self.has_wal = False
        try:
            with sqlite_rows.reading(self._file, HINT):
                fault = sqlite_bytes.header_fault(file)
                wal = _wal_of(file)
                if fault is None and wal.exists():
                    self.has_wal = wal.stat().st_size > 0
                    fault = sqlite_bytes.wal_fault(wal)
                if fault is not None:
                    raise errors.StorageDamaged(str(file), fault, hint=HINT)
                self._connection = sqlite_connection.open_log(connect, self._place())
                self._check(self._connection, full_check)
        except BaseException:
            self.close()
            raise

    def _place(self) -> pathlib.Path:
        """Where to open the file so that closing it changes nothing.

        Closing moves what the WAL holds into the file and removes the WAL, even of a file that
        turned out to be damaged; but not if the file is no longer at the path at which it was
        opened. Hence a hard link, which `close` removes first.
        """
        alias = self._file.with_name(self._file.name + ".check")
        self._remove(alias)
        try:
            alias.hardlink_to(self._file)
            self._alias = alias
            if self.has_wal:
                _wal_of(alias).hardlink_to(_wal_of(self._file))
        except OSError:
            # A file system without hard links: then a damaged file does lose its WAL.
            self._remove(alias)
            self._alias = None
            return self._file
        return alias

    @staticmethod
    def _remove(alias: pathlib.Path) -> None:
        for place in (alias, _wal_of(alias)):
            place.unlink(missing_ok=True)

    def close(self) -> None:
        if self._alias is not None:
            self._remove(self._alias)
        if self._heads is not None:
            # A statement that is not finished would keep the connection open, and its lock.
            self._heads.close()
            self._heads = None
        if self._connection is not None:
            sqlite_connection.close(self._connection)
            self._connection = None

    def _check(self, connection: sqlite_connection.Connection, full_check: bool) -> None:
        # A table whose name is damaged looks empty, and is nothing that SQLite's own check finds.
        rows = sqlite_connection.all_rows(
            connection, "SELECT type, name, tbl_name, sql FROM sqlite_schema"
        )
        if len(rows) != len(_TABLE_ROWS) or set(rows) != _TABLE_ROWS:
            raise errors.StorageDamaged(
                str(self._file), "its list of tables is not that of a log", hint=HINT
            )
        if full_check:
            check = "integrity_check"
        elif self._file.stat().st_size <= _CHECK_LIMIT_BYTES:
            check = "quick_check"
        else:
            return
        rows = sqlite_connection.all_rows(connection, f"PRAGMA {check}(3)")
        if rows != [("ok",)]:
            found = "; ".join(" ".join(str(row[0]).split()) for row in rows)
            raise errors.StorageDamaged(str(self._file), found, hint=HINT)

    def meta(self) -> Meta:
        with sqlite_rows.reading(self._file, HINT):
            values = sqlite_rows.meta_of(self._all("SELECT name, value, crc FROM meta"))
            compacted = int(values.get("compacted", 0))
            ((last, records),) = self._all("SELECT coalesce(max(rev), 0), count(*) FROM log")
            ((uncompacted,),) = self._all(
                "SELECT count(*) FROM log WHERE rev > ? AND (prev > 0 OR value IS NULL)",
                compacted,
            )
            return Meta(
                epoch=str(values["epoch"]),
                revision=max(int(values["revision"]), last),
                floor=int(values["floor"]),
                compacted=compacted,
                relaxed=values.get("state") == "relaxed",
                records=records,
                uncompacted=uncompacted,
            )

    def heads(self, count: int) -> list[Record]:
        """The next that many newest records of a path, in the order of revisions; [] at the end."""
        with sqlite_rows.reading(self._file, HINT):
            if self._heads is None:
                for (rev,) in self._all(_MISLED):
                    raise sqlite_rows.BadRow(f"record {rev} does not follow one of its own path")
                self._heads = self._open().execute(_HEADS)
            return [sqlite_rows.record_of(row) for row in islice(self._heads, count)]

    def _all(self, sql: str, *parameters: Any) -> list[Any]:
        return sqlite_connection.all_rows(self._open(), sql, parameters)

    def _open(self) -> sqlite_connection.Connection:
        if self._connection is None:
            raise RuntimeError("the log has been closed")
        return self._connection


def _wal_of(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(file.name + "-wal")
