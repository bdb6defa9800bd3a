"""A connection that tests look into, and hold up; shared by the tests of the embedded engine."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from moat_kv.engine import sqlite_connection


class WatchedConnection:
    """A connection that notes its statements, and can be held up before each."""

    def __init__(self, connection: sqlite_connection.Connection) -> None:
        self._connection = connection
        self.statements: list[str] = []
        self.free = threading.Event()
        self.free.set()
        self.held = threading.Event()

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> sqlite_connection.Cursor:
        self.statements.append(sql)
        if not self.free.is_set():
            self.held.set()
            assert self.free.wait(40)
        return self._connection.execute(sql, parameters)

    def close(self) -> None:
        self._connection.close()


class Watching:
    """A `connect` that keeps the connection it made last."""

    last: WatchedConnection

    def __init__(self, connect: sqlite_connection.Connect = sqlite_connection.connect) -> None:
        self._connect = connect

    def __call__(self, path: str) -> WatchedConnection:
        self.last = WatchedConnection(self._connect(path))
        return self.last
