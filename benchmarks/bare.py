"""Bare SQLite: the same table with the same settings, and nobody between it and the program."""

from __future__ import annotations

import itertools
import pathlib
import sqlite3
import time
from collections.abc import Sequence

from benchmarks import entries
from moat_kv.engine import sqlite_connection, sqlite_open, sqlite_rows
from moat_kv.entry import Record

_INSERT = f"INSERT INTO log VALUES ({', '.join('?' * len(sqlite_rows.COLUMNS))})"


class BareLog:
    """A log's file, open for writing. Blocks, as SQLite does."""

    def __init__(self, file: pathlib.Path) -> None:
        sqlite_open.create(sqlite_connection.connect, file)
        connection = sqlite_connection.open_log(sqlite_connection.connect, file)
        assert isinstance(connection, sqlite3.Connection)
        self._connection = connection
        self._revisions = itertools.count(1)

    def close(self) -> None:
        self._connection.close()

    def rows(self, count: int) -> list[tuple[object, ...]]:
        """Rows of the kind that our server writes, ready for `commit`."""
        rows = []
        for number in range(count):
            rev = next(self._revisions)
            path = entries.path(number)
            record = Record(rev, path, entries.PACKED, time.time(), "bench:00000000", rev)
            rows.append(sqlite_rows.row_of(record, 0))
        return rows

    def commit(self, rows: Sequence[tuple[object, ...]]) -> float:
        """Write these rows in one transaction, to the disk; how many seconds that took."""
        began = time.perf_counter()
        self._connection.execute("BEGIN")
        self._connection.executemany(_INSERT, rows)
        self._connection.execute("COMMIT")
        return time.perf_counter() - began

    def read(self) -> int:
        """Read all rows; how many there are."""
        return len(self._connection.execute("SELECT * FROM log ORDER BY rev").fetchall())
