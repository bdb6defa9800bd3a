"""Telling clients which of their writes have lost.

The write actions say here which writes were answered as pending, a line's stream `conflicts` says
who wants to hear. A conflict is an entry named by the record's id (`moat_kv.conflicts`), whichever
server wrote it, so it is enough to look at what is applied at that place. Nothing is stored: with a
line goes what is known of its writes, and its client asks for them by their ids on the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moat_kv import conflicts, errors
from moat_kv.entry import Record
from moat_kv.path import Path
from moat_kv.proto.messages import Request
from moat_kv.server import streams
from moat_kv.server.actions import LIST, Action
from moat_kv.tree.watch import Watcher

if TYPE_CHECKING:
    from moat_kv.server.connection import Connection
    from moat_kv.server.server import Server

#: The latest so many of a line's pending writes are known.
LINE_LIMIT = 10_000
#: A client asks for at most so many by their ids.
ASKED_LIMIT = 1_000


class LostWrites:
    """Whose the writes are that wait, and who is told of those that lose."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._by_id: dict[str, Connection] = {}
        self._ids: dict[Connection, dict[str, None]] = {}
        self._streams: dict[Connection, streams.QueueStream] = {}
        self._watcher = Watcher(conflicts.PLACE, self._look, min_depth=1, max_depth=1)

    def kept(self, connection: Connection, id: str) -> None:
        """A write of this client waits."""
        if connection not in self._server.connections:
            return
        if not self._ids:
            self._server.store.watchers.add(self._watcher)
        ids = self._ids.setdefault(connection, {})
        if len(ids) >= LINE_LIMIT:
            self._by_id.pop(next(iter(ids)), None)
            del ids[next(iter(ids))]
        ids[id] = None
        self._by_id[id] = connection

    def gone(self, connection: Connection) -> None:
        """The client's line has ended."""
        ids = self._ids.pop(connection, None)
        if ids is None:
            return
        for id in ids:
            if self._by_id.get(id) is connection:
                del self._by_id[id]
        if not self._ids:
            self._server.store.watchers.remove(self._watcher)

    def open(self, connection: Connection, seq: int) -> None:
        """Tell this client from now on; and at once what has lost already."""
        stream = streams.QueueStream(
            seq,
            lambda: connection.stream_ready(seq),
            lambda: self._close(connection, stream),
        )
        connection.open_stream(seq, stream)
        self._streams[connection] = stream
        for id in list(self._ids.get(connection, ())):
            self._tell_if_lost(id)

    def _close(self, connection: Connection, stream: streams.QueueStream) -> None:
        if self._streams.get(connection) is stream:
            del self._streams[connection]

    def _look(self) -> None:
        """Conflicts have been written, or cleared; or there is another tree."""
        if self._watcher.overrun is not None:
            self._watcher.overrun = None
            for id in list(self._by_id):
                self._tell_if_lost(id)
            return
        for record in self._watcher.take(len(self._watcher.pending)):
            self._tell(record)

    def _tell_if_lost(self, id: str) -> None:
        path = conflicts.PLACE / id
        node = self._server.store.tree.find(path)
        if node is not None and node.value is not None:
            self._tell(Record(node.rev, path, node.value, node.at, node.origin, node.tick))

    def _tell(self, record: Record) -> None:
        id = record.path[-1]
        if record.value is None or not isinstance(id, str):
            return
        connection = self._by_id.get(id)
        if connection is None or connection not in self._streams:
            return
        del self._by_id[id]
        self._ids[connection].pop(id, None)
        self._streams[connection].put(record.path, record.value)


def watch(connection: Connection, request: Request) -> None:
    """The stream of those of this client's pending writes that have lost."""
    ids = request.arguments.get("ids", [])
    if len(ids) > ASKED_LIMIT or not all(type(id) is str for id in ids):
        raise errors.BadArguments("conflicts", f"ids are at most {ASKED_LIMIT} texts")
    for id in ids:
        Path(id)  # raises BadPath for what can be nobody's id
    lost_writes = connection.server.lost_writes
    for id in ids:
        lost_writes.kept(connection, id)
    lost_writes.open(connection, request.seq)


ACTIONS = (Action("conflicts", "read", {}, {"ids": LIST}, watch),)
