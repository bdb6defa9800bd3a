"""Answers in parts: walks over the tree, watches, lists of rows.

Opened by actions, pulled by a connection's writer. Each `produce` gives a slice of bounded size
and returns at once, so that a long answer delays nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import anyio

from moat_kv import errors
from moat_kv.entry import Record
from moat_kv.path import Path
from moat_kv.proto import messages, rows
from moat_kv.proto.messages import State
from moat_kv.server.store import Store
from moat_kv.tree import match
from moat_kv.tree import tree as tree_module
from moat_kv.tree.node import Node
from moat_kv.tree.watch import Watcher

#: A slice ends at whichever comes first: rows, bytes of rows, or nodes that were looked at.
SLICE_ROWS = 500
SLICE_BYTES = 64 * 1024
SLICE_NODES = 2_000


class Answer:
    """What all have in common; see `connection.Stream`."""

    def __init__(self, seq: int, **fields: Any) -> None:
        self.finished = False
        self._seq = seq
        self._fields = fields

    @property
    def walks(self) -> bool:
        return False

    @property
    def more(self) -> bool:
        return False

    def start(self) -> bytes:
        return messages.pack((self._seq, State.START, self._fields, None))


class TreeStream(Answer):
    """All entries below a path, with relative paths: the answer to get_tree."""

    def __init__(self, seq: int, store: Store, path: Path, min_depth: int, max_depth: int) -> None:
        super().__init__(seq, rev=store.tree.revision)
        node = store.tree.find(path)
        self._walk: Iterator[tuple[bytes, Node]] = iter(())
        if node is not None:
            self._walk = tree_module.walk(
                node, b"", min_depth=min_depth, max_depth=max_depth, at_root=not path
            )

    def produce(self) -> list[bytes]:
        packed, done = _slice(self._walk)
        produced = [rows.pack_item(self._seq, packed, {})] if packed else []
        if done:
            produced.append(messages.pack((self._seq, State.END, {}, None)))
            self.finished = True
        return produced

    @property
    def walks(self) -> bool:
        return not self.finished

    @property
    def more(self) -> bool:
        return not self.finished

    def close(self) -> None:
        self._walk = iter(())


def _slice(
    walk: Iterator[tuple[bytes, Node]],
    since: int | None = None,
    wants: Callable[[bytes], bool] | None = None,
) -> tuple[list[bytes], bool]:
    """Some packed rows, and whether the walk is at its end.

    `since`: only what was written after that revision, deletions included.
    """
    packed: list[bytes] = []
    size = 0
    for nodes, (path, node) in enumerate(walk, 1):
        # What is pending may have been told by another server, or not at all.
        wanted = node.value is not None if since is None else node.rev > since or node.rev < 0
        if wanted and (wants is None or wants(path)):
            row = rows.pack_row(path, node)
            packed.append(row)
            size += len(row)
        if len(packed) >= SLICE_ROWS or size >= SLICE_BYTES or nodes >= SLICE_NODES:
            return packed, False
    return packed, True


class RowStream(Answer):
    """Rows that are made one after the other: the answer to list.

    `packed` gives None wherever something was done without there being a row.
    """

    def __init__(self, seq: int, packed: Iterator[bytes | None]) -> None:
        super().__init__(seq)
        self._packed = packed

    def produce(self) -> list[bytes]:
        part: list[bytes] = []
        size = 0
        for steps, row in enumerate(self._packed, 1):
            if row is not None:
                part.append(row)
                size += len(row)
            if len(part) >= SLICE_ROWS or size >= SLICE_BYTES or steps >= SLICE_NODES:
                break
        else:
            self.finished = True
        produced = [rows.pack_item(self._seq, part, {})] if part else []
        if self.finished:
            produced.append(messages.pack((self._seq, State.END, {}, None)))
        return produced

    @property
    def walks(self) -> bool:
        return not self.finished

    @property
    def more(self) -> bool:
        return not self.finished

    def close(self) -> None:
        self._packed = iter(())


class FedStream(Answer):
    """Rows that somebody fetches in portions: the answer to history.

    Whoever feeds it waits in `taken` until the client has room for more.
    """

    def __init__(self, seq: int, ready: Callable[[], None]) -> None:
        super().__init__(seq)
        self.closed = False
        self._ready = ready
        self._packed: list[bytes] = []
        self._last = False
        self._error: errors.MoatKvError | None = None
        self._taken = anyio.Event()

    def put(self, packed: list[bytes], *, last: bool) -> None:
        """The next rows; the ones before have been taken."""
        self._packed = packed
        self._last = last
        self._taken = anyio.Event()
        self._ready()

    def fail(self, error: errors.MoatKvError) -> None:
        """There are no further rows, and that is why."""
        self._error = error
        self._ready()

    async def taken(self) -> None:
        """Until what was put last is on its way, or nobody wants more."""
        await self._taken.wait()

    def produce(self) -> list[bytes]:
        produced = []
        if self._packed:
            produced.append(rows.pack_item(self._seq, self._packed, {}))
            self._packed = []
        if self._error is not None:
            fields = messages.error_fields(self._error)
            produced.append(messages.pack((self._seq, State.ERROR, fields, None)))
        elif self._last:
            produced.append(messages.pack((self._seq, State.END, {}, None)))
        self.finished = self._last or self._error is not None
        self._taken.set()
        return produced

    def close(self) -> None:
        self.closed = True
        self._taken.set()


class WatchStream(Answer):
    """Changes below a path as they come, after its present state if that was asked for.

    The present state is read by a walk in slices while changes go on. A change that comes in
    between waits; where the walk passes its path afterwards, the walk has told it.
    """

    def __init__(
        self,
        seq: int,
        store: Store,
        watcher: Watcher,
        *,
        fetch: bool,
        since: int | None,
        reset: str | None,
    ) -> None:
        super().__init__(seq, rev=store.tree.revision)
        self._store = store
        self._watcher = watcher
        self._reset = reset
        self._since = since
        self._walk: Iterator[tuple[bytes, Node]] | None = None
        store.watchers.add(watcher)
        if reset is None and (fetch or since is not None):
            self._start_walk()

    def _start_walk(self) -> None:
        watcher = self._watcher
        base = watcher.base
        node = self._store.tree.find(base)
        self._walk = iter(())
        if node is not None:
            self._walk = tree_module.walk(
                node,
                base.packed,
                min_depth=watcher.min_depth,
                max_depth=watcher.max_depth,
                at_root=not base,
            )

    def produce(self) -> list[bytes]:
        produced: list[bytes] = []
        if self._watcher.overrun is not None:
            self._reset, self._watcher.overrun = self._watcher.overrun, None
        if self._since is not None and self._store.tree.floor > self._since:
            # The walk would meet only what is left of the deletions that were asked for.
            self._reset = "deletions were dropped meanwhile"
        if self._reset is not None:
            produced.append(rows.pack_item(self._seq, (), {"reset": self._reset}))
            self._reset = self._since = None
            self._start_walk()
        if self._walk is not None:
            produced.extend(self._fetch())
        elif self._watcher.pending:
            produced.append(self._changes())
        return produced

    def _fetch(self) -> list[bytes]:
        assert self._walk is not None
        packed, done = _slice(self._walk, self._since, self._passes)
        if done:
            self._walk = self._since = None
            fields: dict[str, Any] = {"ready": True}
            if not self._watcher.pending:
                fields["mark"] = self._store.tree.revision
            return [rows.pack_item(self._seq, packed, fields)]
        return [rows.pack_item(self._seq, packed, {})] if packed else []

    def _passes(self, packed_path: bytes) -> bool:
        """Whether the walk tells this path; what waited for it is told with it."""
        watcher = self._watcher
        if watcher.pattern is None and not watcher.pending:
            return True
        path = Path.unpack(packed_path)
        if watcher.pattern is not None and not match.matches(watcher.pattern, path):
            return False
        watcher.pending.pop(path, None)
        return True

    def _changes(self) -> bytes:
        records = self._watcher.take(SLICE_ROWS, SLICE_BYTES)
        fields: dict[str, Any] = {}
        if not self._watcher.pending:
            fields["mark"] = self._store.tree.revision
        return rows.pack_item(self._seq, [packed_change(record) for record in records], fields)

    @property
    def walks(self) -> bool:
        return (
            self._walk is not None or self._reset is not None or self._watcher.overrun is not None
        )

    @property
    def more(self) -> bool:
        return self._walk is not None or bool(self._watcher.pending)

    def close(self) -> None:
        self._store.watchers.remove(self._watcher)
        self._watcher.pending.clear()


#: The last change and its row: the same one goes to many watchers in turn.
_last: tuple[Record | None, bytes] = (None, b"")


def packed_change(record: Record) -> bytes:
    """A change's row, packed once for all its watchers."""
    global _last
    last, row = _last  # taken as one: there may be servers in several threads
    if last is record:
        return row
    row = rows.pack_row(record.path.packed, record)
    _last = (record, row)
    return row


class QueueStream(Answer):
    """Messages that are not stored, with a bound: the answer to monitor.

    A reader that is slow loses the oldest, and is told how many.
    """

    LIMIT = 1_000
    LIMIT_BYTES = 2 * 1024 * 1024

    def __init__(self, seq: int, ready: Callable[[], None], close: Callable[[], None]) -> None:
        super().__init__(seq)
        self._ready = ready
        self._close = close
        self._waiting: deque[tuple[Path, bytes]] = deque()
        self._size_bytes = 0
        self._lost = 0

    def put(self, topic: Path, data: bytes) -> None:
        waiting = self._waiting
        waiting.append((topic, data))
        self._size_bytes += len(data)
        while len(waiting) > self.LIMIT or self._size_bytes > self.LIMIT_BYTES:
            self._size_bytes -= len(waiting.popleft()[1])
            self._lost += 1
        self._ready()

    def produce(self) -> list[bytes]:
        produced = []
        if self._lost:
            produced.append(messages.pack((self._seq, State.ITEM, {"lost": self._lost}, None)))
            self._lost = 0
        size = 0
        while self._waiting and len(produced) < SLICE_ROWS and size < SLICE_BYTES:
            topic, data = self._waiting.popleft()
            size += len(data)
            produced.append(messages.pack((self._seq, State.ITEM, {"topic": topic}, data)))
        self._size_bytes -= size
        return produced

    @property
    def more(self) -> bool:
        return bool(self._waiting)

    def close(self) -> None:
        self._close()


class StateStream(Answer):
    """The newest state of something, whenever it has changed: the answer to group_watch."""

    def __init__(
        self,
        seq: int,
        state: Callable[[], tuple[dict[str, Any], bytes | None]],
        close: Callable[[], None],
    ) -> None:
        super().__init__(seq)
        self._state = state
        self._close = close
        self._told: tuple[dict[str, Any], bytes | None] | None = None

    def produce(self) -> list[bytes]:
        produced = []
        state = self._state()
        if state != self._told:
            self._told = state
            produced.append(messages.pack((self._seq, State.ITEM, state[0], state[1])))
        return produced

    def close(self) -> None:
        self._close()
