"""Records, and what the log says of itself, as rows and back, with a checksum over each.

Used by `sqlite_open`, `sqlite_store` and `copy_store`. SQLite notices when the structure of its
file is damaged but not when a byte of content has changed, so every row carries a CRC of its own.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

from moat_kv import errors
from moat_kv.engine import file_errors, sqlite_connection
from moat_kv.entry import Record
from moat_kv.path import Path

#: The log's columns, in the order in which rows are written and read. `prev` is the revision of
#: the path's record before this one, 0 if there was none: see `engine.sqlite_store`.
COLUMNS = ("rev", "prev", "path", "value", "at", "origin", "tick", "session", "expires_at", "crc")

Entry = tuple[Record, int]
"""A record and its `prev`."""

_PLACES = f"({', '.join('?' * len(COLUMNS))})"
#: So many rows go into one statement at most. A statement gives the interpreter's lock back once
#: and not once a row: while the event loop is busy, each time costs up to its switch interval.
_ROWS = 64
#: Several rows go into one statement only up to this size, in bytes: a prepared statement keeps
#: a copy of what it was last given, and there are `_ROWS` of them.
_STATEMENT_BYTES = 64 * 1024
#: Statements that add so many rows.
INSERT = {
    count: f"INSERT INTO log ({', '.join(COLUMNS)}) VALUES " + ", ".join([_PLACES] * count)
    for count in range(1, _ROWS + 1)
}

_pack_numbers = struct.Struct("<qqdq").pack
_pack_time = struct.Struct("<d").pack


class BadRow(Exception):
    """A row that cannot have been written by this program; says which and why."""


def _checksum(
    rev: int,
    prev: int,
    path: bytes,
    value: bytes | None,
    at: float,
    origin: str,
    tick: int,
    session: str | None,
    expires_at: float | None,
) -> int:
    crc = crc32(origin.encode(), crc32(path, crc32(_pack_numbers(rev, prev, at, tick))))
    if value is not None:
        # So that an empty value and a tombstone differ, and a moved border between the two.
        crc = crc32(value, crc ^ len(value) ^ 0x5A5A5A5A)
    if session is not None:
        crc = crc32(session.encode(), crc)
    if expires_at is not None:
        crc = crc32(_pack_time(expires_at), crc)
    return crc


@contextlib.contextmanager
def reading(file: pathlib.Path, hint: str) -> Iterator[None]:
    """What goes wrong with a file that is read comes out as StorageDamaged (with `hint`),
    StorageBusy or StorageFailed.
    """
    try:
        yield
    except OSError as exc:
        raise errors.StorageFailed(str(file), file_errors.reason_of(exc, file)) from exc
    except (BadRow, KeyError, TypeError, ValueError) as exc:
        raise errors.StorageDamaged(str(file), str(exc), hint=hint) from exc
    except Exception as exc:
        if not sqlite_connection.is_sqlite_error(exc):
            raise
        raise sqlite_connection.translated(exc, file, hint) from exc


def row_of(record: Record, prev: int) -> tuple[Any, ...]:
    """What is stored for a record, in the order of `COLUMNS`."""
    rev, path, value, at, origin, tick, session, expires_at = record
    packed = path.packed
    crc = _checksum(rev, prev, packed, value, at, origin, tick, session, expires_at)
    return (rev, prev, packed, value, at, origin, tick, session, expires_at, crc)


def record_of(row: tuple[Any, ...]) -> Record:
    """The record in a row. Raises BadRow."""
    rev, prev, packed, value, at, origin, tick, session, expires_at, crc = row
    try:
        if crc == _checksum(rev, prev, packed, value, at, origin, tick, session, expires_at):
            path = Path.unpack(packed)
            # Past NamedTuple's own constructor, which is Python: a start reads every row.
            return tuple.__new__(Record, (rev, path, value, at, origin, tick, session, expires_at))
    except errors.BadPath as exc:
        raise BadRow(f"record {rev} has no proper path ({exc})") from exc
    except (TypeError, AttributeError, ValueError, struct.error) as exc:
        raise BadRow(f"record {rev} has a field of a wrong type ({exc})") from exc
    raise BadRow(f"record {rev} does not match its checksum")


def parted(entries: Sequence[Entry]) -> list[list[Any]]:
    """The values of all rows, in order, parted into what goes into one statement."""
    values: list[Any] = []
    parts = [values]
    rows = size_bytes = 0
    for record, prev in entries:
        if record.value is not None:
            size_bytes += len(record.value)
        if rows and (rows == _ROWS or size_bytes > _STATEMENT_BYTES):
            values = []
            parts.append(values)
            rows, size_bytes = 0, len(record.value or b"")
        values += row_of(record, prev)
        rows += 1
    return parts


_SET_META = (
    "INSERT INTO meta (name, value, crc) VALUES (?, ?, ?)"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value, crc = excluded.crc"
)


def set_meta(connection: sqlite_connection.Connection, values: Mapping[str, str | int]) -> None:
    """Store what the log says of itself; other names keep what they had."""
    for name, value in values.items():
        connection.execute(_SET_META, (name, value, _meta_checksum(name, value)))


def meta_of(rows: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    """What the log says of itself: rows of name, value and checksum. Raises BadRow."""
    values = {}
    for name, value, crc in rows:
        if crc != _meta_checksum(name, value):
            raise BadRow("what it says of itself does not match its checksum")
        values[name] = value
    return values


def _meta_checksum(name: object, value: object) -> int:
    return crc32(json.dumps([name, value], default=repr).encode())
