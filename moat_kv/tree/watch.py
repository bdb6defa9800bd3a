"""Watchers: who wants to know of which changes, and what waits for each of them.

`server.store` calls `WatchIndex.notify` for every applied record; a connection's writer takes
from each watcher what waits, when its line has room. A watcher that falls behind is conflated:
for each path only the newest change waits. Nobody waits for a watcher.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from moat_kv import entry
from moat_kv.path import Path
from moat_kv.tree import match
from moat_kv.tree.node import Key

#: So many changed paths may wait for one watcher; it is told to start anew above that. The values
#: are those of the tree, so what waits costs a reference each.
PENDING_LIMIT = 20_000


class Watcher:
    """One subscription: a subtree between two depths, or a pattern."""

    __slots__ = (
        "_wake",
        "base",
        "limit",
        "max_depth",
        "min_depth",
        "overrun",
        "pattern",
        "pending",
    )

    def __init__(
        self,
        base: Path,
        wake: Callable[[], None],
        *,
        min_depth: int = 0,
        max_depth: int = -1,
        pattern: Path | None = None,
        limit: int = PENDING_LIMIT,
    ) -> None:
        self.base = base
        self.min_depth = min_depth
        self.max_depth = max_depth  # -1: without limit
        self.pattern = pattern
        self.limit = limit
        self.pending: dict[Path, entry.Record] = {}
        #: Why what waited was dropped, so that the state has to be told anew; None if it was not.
        self.overrun: str | None = None
        self._wake = wake

    def wants(self, path: Path) -> bool:
        """Whether a path at or below `base` is among those watched."""
        if self.pattern is not None:
            return match.matches(self.pattern, path)
        depth = len(path) - len(self.base)
        return depth >= self.min_depth and (self.max_depth < 0 or depth <= self.max_depth)

    def offer(self, record: entry.Record) -> None:
        """A change to a path that is wanted."""
        if self.overrun is not None:
            return
        pending = self.pending
        if record.path in pending:
            # The newest comes last, so that revisions rise within what is taken.
            del pending[record.path]
        elif len(pending) >= self.limit:
            self.begin_anew("too many changes waited")
            return
        pending[record.path] = record
        self._wake()

    def begin_anew(self, reason: str) -> None:
        """The state has to be told anew."""
        self.pending.clear()
        self.overrun = reason
        self._wake()

    def take(self, count: int, size_bytes: int = 1 << 62) -> list[entry.Record]:
        """The next changes, oldest first: at most that many, at most one beyond that size."""
        pending = self.pending
        records: list[entry.Record] = []
        for record in islice(pending.values(), count):
            records.append(record)
            size_bytes -= len(record.value or b"")
            if size_bytes < 0:
                break
        if len(records) == len(pending):
            pending.clear()
        else:
            for record in records:
                del pending[record.path]
        return records


class _Branch:
    __slots__ = ("branches", "watchers")

    def __init__(self) -> None:
        self.branches: dict[Key, _Branch] = {}
        # A dict as an ordered set: watchers are told in the order in which they came.
        self.watchers: dict[Watcher, None] = {}


class WatchIndex:
    """Finds the watchers of a path by walking a tree of their bases alongside it."""

    def __init__(self) -> None:
        self._root = _Branch()
        self.count = 0

    def add(self, watcher: Watcher) -> None:
        branch = self._root
        for key in watcher.base.keys:
            branch = branch.branches.setdefault(key, _Branch())
        branch.watchers[watcher] = None
        self.count += 1

    def remove(self, watcher: Watcher) -> None:
        trail = [self._root]
        for key in watcher.base.keys:
            trail.append(trail[-1].branches[key])
        del trail[-1].watchers[watcher]
        self.count -= 1
        for index in range(len(trail) - 1, 0, -1):
            if trail[index].watchers or trail[index].branches:
                break
            del trail[index - 1].branches[watcher.base.keys[index - 1]]

    def notify(self, record: entry.Record) -> None:
        """Offer a record to whoever watches its path. System data is offered to nobody."""
        if not self.count:
            return
        path = record.path
        keys = path.keys
        if keys and path[0] is entry.SYSTEM:
            return
        branch: _Branch | None = self._root
        depth = 0
        while branch is not None:
            for watcher in branch.watchers:
                if watcher.wants(path):
                    watcher.offer(record)
            if depth == len(keys):
                return
            branch = branch.branches.get(keys[depth])
            depth += 1

    def begin_anew(self, reason: str) -> None:
        """Every watcher has to be told the state anew."""
        branches = [self._root]
        while branches:
            branch = branches.pop()
            branches.extend(branch.branches.values())
            for watcher in branch.watchers:
                watcher.begin_anew(reason)
