"""Opening SQLite the way a log needs it, and making sense of its errors.

Used by `engine.sqlite_store`, in the worker thread. Whatever gives connections that look like
`Connection` will do; the standard library's are the default, those of apsw let a test put a file
system of its own below (`moat_kv.testing.powercut`).
"""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from moat_kv import errors
from moat_kv.engine import file_errors


class Cursor(Protocol):
    """The rows of a statement."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...
    def close(self) -> None: ...


class Connection(Protocol):
    """What is used of a connection; `sqlite3.Connection` and `apsw.Connection` both have it.

    It must not begin transactions by itself.
    """

    @property
    def in_transaction(self) -> bool: ...
    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor: ...
    def close(self) -> None: ...


Connect = Callable[[str], Connection]
"""Opens the database at a path, which is created if it is not there."""

#: So many statements stay prepared: those of `SqliteStore.commit` differ by their number of rows.
_STATEMENTS = 256

ERROR, BUSY, LOCKED, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, NOTADB = (
    1,
    5,
    6,
    8,
    10,
    11,
    13,
    14,
    26,
)

_SETTINGS = (
    # Before the WAL is first touched: its index is then held in memory, not in a shared file.
    "PRAGMA locking_mode=EXCLUSIVE",
    # A commit is on disk when it returns. On macOS only a full fsync is one.
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=ON",
    "PRAGMA checkpoint_fullfsync=ON",
    "PRAGMA cache_size=-8192",  # KiB; writes go to the end, reads are rare
    "PRAGMA temp_store=MEMORY",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
    # What a WAL took that was once longer than this is given back, in bytes.
    "PRAGMA journal_size_limit=16777216",
)

#: So many pages long (of 4 KiB) the WAL is emptied into the file; and so many where there is little
#: room, for then it is rather in the way.
WAL_PAGES, WAL_PAGES_LOW = 1_000, 100


def connect(path: str) -> Connection:
    """A connection of the standard library's `sqlite3`."""
    return sqlite3.connect(
        path,
        isolation_level=None,  # BEGIN and COMMIT are ours
        timeout=0.0,  # who else has the file keeps it
        cached_statements=_STATEMENTS,
    )


def open_log(connect: Connect, path: pathlib.Path) -> Connection:
    """Open an existing log for this process alone; nothing is written yet.

    Raises what the connection raises.
    """
    connection = open_alone(connect, path)
    try:
        all_rows(connection, "SELECT count(*) FROM meta")  # takes the lock, reads the WAL
    except BaseException:
        close(connection)
        raise
    return connection


def open_alone(connect: Connect, path: pathlib.Path) -> Connection:
    """Open a database for this process alone, with every commit synced; raises as `open_log`."""
    connection = connect(str(path))
    try:
        for setting in _SETTINGS:
            all_rows(connection, setting)
        set_wal_pages(connection, WAL_PAGES)
    except BaseException:
        close(connection)
        raise
    return connection


def set_wal_pages(connection: Connection, pages: int) -> None:
    """How long the write-ahead log may grow before it is emptied into the file."""
    all_rows(connection, f"PRAGMA wal_autocheckpoint={pages}")


def close(connection: Connection) -> None:
    """Close; what SQLite cannot move from the WAL into the file then stays in the WAL."""
    try:
        connection.close()
    except Exception as exc:
        # sqlite3 says nothing of this; apsw does.
        if not is_sqlite_error(exc):
            raise


def all_rows(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
    """All rows of a statement, which is thereby carried out to its end."""
    return list(connection.execute(sql, parameters))


def code_of(exc: BaseException) -> int | None:
    """SQLite's primary result code in an error of sqlite3 or apsw; None if there is none."""
    code = getattr(exc, "sqlite_errorcode", None)
    if code is None:
        code = getattr(exc, "extendedresult", None)
    return code & 0xFF if isinstance(code, int) else None


def reason_of(exc: BaseException) -> str:
    """What went wrong, for a person."""
    code = code_of(exc)
    if code == FULL:
        return "the disk is full"
    if code == IOERR:
        name = getattr(exc, "sqlite_errorname", type(exc).__name__)
        return f"the disk reports an error ({name})"
    if code in (READONLY, CANTOPEN):
        return "no permission; the server has to be allowed to write it, and in its folder"
    return str(exc) or type(exc).__name__


def is_sqlite_error(exc: Exception) -> bool:
    """Whether this comes from SQLite and not from a mistake in our own code."""
    return code_of(exc) is not None or isinstance(exc, sqlite3.Error)


def translated(exc: Exception, file: pathlib.Path, hint: str) -> errors.MoatKvError:
    """The error that a caller gets for one of SQLite's, met while a log was opened or read."""
    code = code_of(exc)
    if code in (BUSY, LOCKED):
        return errors.StorageBusy(str(file), "another program that has it open in SQLite")
    if code in (CORRUPT, NOTADB, ERROR, None):
        # ERROR: a table or column is missing. No code: sqlite3 could not decode a text.
        return errors.StorageDamaged(str(file), str(exc), hint=hint)
    return errors.StorageFailed(str(file), reason_of(exc))


@contextlib.contextmanager
def writing(file: pathlib.Path) -> Iterator[None]:
    """Whatever goes wrong with a file that is written comes out as StorageFailed."""
    try:
        yield
    except OSError as exc:
        raise errors.StorageFailed(str(file), file_errors.reason_of(exc, file)) from exc
    except Exception as exc:
        if not is_sqlite_error(exc):
            raise
        raise errors.StorageFailed(str(file), reason_of(exc)) from exc
