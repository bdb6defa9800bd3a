"""The SQL of a server's own copy of a shared tree, and of its outbox.

Used by `engine.local_copy` in its worker thread, one call at a time. One file holds both: the
newest record of each path with the revision up to which that is the whole truth, and the plain
writes that were taken while the network's engine was out of reach. Every transaction is synced,
so what is in the outbox is durable, and a revision never runs ahead of its entries.

The two are not worth the same. Entries can be taken from the engine again, so damage to them costs
a load; the outbox is nowhere else, so damage to it is refused.

A transaction that failed may lie in the write-ahead log, complete to look at, while the disk does
not have it. As `sqlite_store` does, and for its reasons: the connection stays open, the log is
emptied before the next transaction, and one that another process left is written anew at the start.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple
from zlib import crc32

from moat_kv import errors
from moat_kv.engine import (
    age,
    sqlite_bytes,
    sqlite_connection,
    sqlite_open,
    sqlite_rows,
)
from moat_kv.entry import Record
from moat_kv.path import Path

#: In the header of every copy, "mkvc"; and the layout that this program writes.
APPLICATION_ID = 0x6D6B7663
SCHEMA = 1

_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID",
    # As in a log, but that a path has one row; `prev` is always 0.
    "CREATE TABLE entry (path BLOB PRIMARY KEY, rev INTEGER NOT NULL, prev INTEGER NOT NULL,"
    " value BLOB, at REAL NOT NULL, origin TEXT NOT NULL, tick INTEGER NOT NULL,"
    " session TEXT, expires_at REAL, crc INTEGER NOT NULL)",
    "CREATE TABLE pending (path BLOB PRIMARY KEY, fields TEXT NOT NULL, value BLOB,"
    " crc INTEGER NOT NULL)",
)
_COLUMNS = ", ".join(sqlite_rows.COLUMNS)
_SET_ENTRY = (
    f"INSERT OR REPLACE INTO entry ({_COLUMNS}) VALUES"
    f" ({', '.join('?' * len(sqlite_rows.COLUMNS))})"
)
_HINT = (
    "it may hold writes that no other server has; it is left as it is: move it away to start "
    "without them"
)


class Pending(NamedTuple):
    """A plain write that was answered but is not in the engine yet."""

    path: Path
    value: bytes | None
    """The packed value; None deletes."""
    base: int
    """The path's revision when it was cut off from the engine, 0 if it had none."""
    origin: str
    tick: int
    """With `origin` the id of the record that this is to become."""
    made: age.Moment
    contact_at: float
    """The engine's time when it had last been heard of then, in seconds since 1970."""
    earlier: tuple[str, ...] = ()
    """Ids of what this replaces, of which some may have reached the engine since."""

    @property
    def id(self) -> str:
        return f"{self.origin}:{self.tick}"


class State(NamedTuple):
    """What the copy is a copy of."""

    epoch: str = ""
    """Of the network; empty while there is no copy, or only a part of one."""
    revision: int = 0
    floor: int = 0
    contact_at: float = 0.0
    """The engine's time when it was last heard, in seconds since 1970."""


class Changes(NamedTuple):
    """What one transaction writes."""

    records: Sequence[Record] = ()
    """The newest of each path."""
    state: State | None = None
    puts: Sequence[Pending] = ()
    drops: Sequence[Pending] = ()
    """Without effect where the outbox has another write for that path meanwhile."""
    clear: bool = False
    """First forget all entries; the outbox stays."""


class CopyStore:
    """An open copy. Every method may raise StorageFailed, those that read StorageDamaged."""

    def __init__(self, connect: sqlite_connection.Connect, file: pathlib.Path) -> None:
        self._connect = connect
        self._file = file
        self._connection: sqlite_connection.Connection | None = None
        #: Nothing in the write-ahead log is doubtful.
        self._ready = True
        self._heads: sqlite_connection.Cursor | None = None

    def open(self) -> State:
        """Open the copy, or make it; also raises StorageBusy."""
        with sqlite_rows.reading(self._file, _HINT):
            if not self._file.exists():
                os.close(os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            self._look_at_wal()
            connection = sqlite_connection.open_alone(self._connect, self._file)
            self._connection = connection
            tables = sqlite_connection.all_rows(connection, "SELECT name, sql FROM sqlite_schema")
            if not tables:
                self._create(connection)
            else:
                self._check(connection, [sql for _name, sql in tables if sql])
            if not self._ready:
                self._empty_wal(connection)
            rows = sqlite_connection.all_rows(connection, "SELECT name, value, crc FROM meta")
            return State(**sqlite_rows.meta_of(rows))

    def _look_at_wal(self) -> None:
        wal = self._file.with_name(self._file.name + "-wal")
        if not wal.exists() or not wal.stat().st_size:
            return
        fault = sqlite_bytes.wal_fault(wal)
        if fault is not None:
            raise ValueError(fault)
        self._ready = False
        sqlite_open.renew_wal(self._file)

    def _empty_wal(self, connection: sqlite_connection.Connection) -> None:
        ((blocked, *_),) = sqlite_connection.all_rows(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
        if blocked:
            raise errors.StorageFailed(str(self._file), "its write-ahead log is in use")
        self._ready = True

    def _create(self, connection: sqlite_connection.Connection) -> None:
        # The first transaction's: a crash leaves a file without tables, which is made anew.
        for statement in (
            "BEGIN",
            f"PRAGMA application_id={APPLICATION_ID}",
            f"PRAGMA user_version={SCHEMA}",
            *_TABLES,
            "COMMIT",
            "PRAGMA journal_mode=WAL",
        ):
            sqlite_connection.all_rows(connection, statement)

    def _check(self, connection: sqlite_connection.Connection, tables: list[str]) -> None:
        ((application,),) = sqlite_connection.all_rows(connection, "PRAGMA application_id")
        ((schema,),) = sqlite_connection.all_rows(connection, "PRAGMA user_version")
        if application != APPLICATION_ID:
            raise ValueError("it is no copy of a tree of moat-kv")
        if schema != SCHEMA:
            raise ValueError(f"its layout is version {schema}, and this program knows {SCHEMA}")
        if sorted(tables) != sorted(_TABLES):
            raise ValueError("its list of tables is not that of a copy")
        rows = sqlite_connection.all_rows(connection, "PRAGMA quick_check(3)")
        if rows != [("ok",)]:
            raise ValueError("; ".join(" ".join(str(row[0]).split()) for row in rows))

    def close(self) -> None:
        """Close it; without effect if it is closed."""
        if self._heads is not None:
            self._heads.close()
            self._heads = None
        if self._connection is not None:
            sqlite_connection.close(self._connection)
            self._connection = None

    def pending(self) -> list[Pending]:
        """The outbox, oldest first."""
        with sqlite_rows.reading(self._file, _HINT):
            # A row that is replaced goes to the end. (The dates may be those of a wrong clock.)
            rows = self._all("SELECT path, fields, value, crc FROM pending ORDER BY rowid")
            return [_pending_of(row) for row in rows]

    def heads(self, count: int) -> list[Record]:
        """The next so many entries, in the order of revisions; [] at the end.

        Nothing may be written before that. StorageDamaged here is no loss: see the module.
        """
        with sqlite_rows.reading(self._file, _HINT):
            if self._heads is None:
                sql = f"SELECT {_COLUMNS} FROM entry ORDER BY rev"
                self._heads = self._opened().execute(sql)
            records = [sqlite_rows.record_of(row) for row in islice(self._heads, count)]
            if not records:
                self._heads.close()
                self._heads = None
            return records

    def write(self, changes: Changes) -> None:
        """All of it, or nothing; it is on disk when this returns."""
        connection = self._opened()
        with sqlite_connection.writing(self._file):
            if not self._ready:
                self._empty_wal(connection)
            try:
                connection.execute("BEGIN")
                self._write(connection, changes)
                connection.execute("COMMIT")
            except BaseException:
                self._ready = False
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @staticmethod
    def _write(connection: sqlite_connection.Connection, changes: Changes) -> None:
        if changes.clear:
            connection.execute("DELETE FROM entry")
        for record in changes.records:
            connection.execute(_SET_ENTRY, sqlite_rows.row_of(record, 0))
        if changes.state is not None:
            sqlite_rows.set_meta(connection, changes.state._asdict())
            if changes.state.floor:
                connection.execute(
                    "DELETE FROM entry WHERE value IS NULL AND rev <= ?", (changes.state.floor,)
                )
        for pending in changes.drops:
            connection.execute(
                "DELETE FROM pending WHERE path = ? AND fields = ?",
                (pending.path.packed, _fields(pending)),
            )
        for pending in changes.puts:
            row = (pending.path.packed, _fields(pending), pending.value)
            connection.execute(
                "INSERT OR REPLACE INTO pending (path, fields, value, crc) VALUES (?, ?, ?, ?)",
                (*row, _checksum(*row)),
            )

    def _all(self, sql: str, *parameters: Any) -> list[Any]:
        return sqlite_connection.all_rows(self._opened(), sql, parameters)

    def _opened(self) -> sqlite_connection.Connection:
        if self._connection is None:
            raise RuntimeError("the copy is not open")
        return self._connection


def _fields(pending: Pending) -> str:
    return json.dumps(
        [
            pending.base,
            pending.origin,
            pending.tick,
            list(pending.made),
            pending.contact_at,
            list(pending.earlier),
        ]
    )


def _pending_of(row: tuple[Any, ...]) -> Pending:
    packed, fields, value, crc = row
    if crc != _checksum(packed, fields, value):
        raise sqlite_rows.BadRow("a write that waits does not match its checksum")
    base, origin, tick, made, contact_at, earlier = json.loads(fields)
    path, moment = Path.unpack(packed), age.Moment(*made)
    return Pending(path, value, base, origin, tick, moment, contact_at, tuple(earlier))


def _checksum(packed: bytes, fields: str, value: bytes | None) -> int:
    crc = crc32(fields.encode(), crc32(packed))
    return crc if value is None else crc32(value, crc ^ 0x5A5A5A5A)
