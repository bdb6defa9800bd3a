"""What a server knows: the tree, its watchers, its monitors, and who belongs to which session.

The engine applies records here (`Replica`; `outbox.Canvas` for one that may be out of reach);
actions read here. Nothing here writes: writes go to the engine and come back through `apply`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moat_kv.entry import SYSTEM, Head, Record
from moat_kv.path import Path
from moat_kv.tree.hashing import Snapshot
from moat_kv.tree.tree import Tree
from moat_kv.tree.watch import WatchIndex


class Store:
    """The replica that a server gives its engine."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.head: Callable[[Path], Head | None] = self.tree.head
        self.watchers = WatchIndex()
        self.monitors: dict[Callable[[Path, bytes], None], Path] = {}
        #: Entries that belong to a session, by the session's id. Kept while the entry lives.
        self.session_entries: dict[str, set[Path]] = {}
        #: What is being hashed at present; each is told what changes.
        self.snapshots: list[Snapshot] = []
        #: Called for each applied record that ends by itself (`server.expiry`).
        self.on_expiring: Callable[[Record], None] | None = None
        #: Servers' messages to each other, by topic.
        self.on_system_message: dict[Path, Callable[[bytes], None]] = {}
        #: Called when the tree has been taken anew.
        self.on_restart: Callable[[], None] | None = None
        # What comes anew, while `tree` shows the old state.
        self._coming: Tree | None = None

    def apply(self, records: Sequence[Record]) -> None:
        if self._coming is not None:
            for record in records:
                self._coming.apply(record)
            return
        tree, watchers, snapshots = self.tree, self.watchers, self.snapshots
        for record in records:
            if snapshots:
                for snapshot in snapshots:
                    snapshot.before(record)
            if tree.bound:
                self._unbind(record.path)
            tree.apply(record)
            if record.value is not None:
                if record.session is not None:
                    self.session_entries.setdefault(record.session, set()).add(record.path)
                if record.expires_at is not None and self.on_expiring is not None:
                    self.on_expiring(record)
            if watchers.count and not tree.is_covered(record.path):
                watchers.notify(record)
        for snapshot in snapshots:
            snapshot.applied()

    def _unbind(self, path: Path) -> None:
        before = self.tree.bound.get(path)
        if before is None or before.session is None:
            return
        owned = self.session_entries[before.session]
        owned.discard(path)
        if not owned:
            del self.session_entries[before.session]

    def compacted(self, floor: int) -> None:
        if self._coming is not None:
            self._coming.drop_tombstones(floor)
            return
        self.tree.drop_tombstones(floor)
        for snapshot in self.snapshots:
            snapshot.restart()

    # What is shown over the log's state, and a log that is told anew -----------------------------

    def cover(self, record: Record) -> None:
        """Show a pending record in its path's place."""
        self.tree.cover(record)
        self.watchers.notify(record)

    def uncover(self, path: Path) -> None:
        """Show what the log has."""
        node = self.tree.uncover(path)
        if node is not None:
            # A deletion that is forgotten is one as of now.
            rev = node.rev or self.tree.revision
            self.watchers.notify(Record(rev, path, node.value, node.at, node.origin, node.tick))

    def restart(self) -> None:
        """Everything will be told anew; what there is stays to be seen until `complete`."""
        self._coming = Tree()
        self.head = self._coming.head

    def complete(self) -> None:
        """Everything has been told; whoever watches begins anew."""
        coming, self._coming = self._coming, None
        if coming is None:
            return
        for record in self.tree.covers():
            coming.cover(record)
        self.tree = coming
        self.session_entries.clear()
        for record in coming.bound.values():
            if record.session is not None:
                self.session_entries.setdefault(record.session, set()).add(record.path)
            if record.expires_at is not None and self.on_expiring is not None:
                self.on_expiring(record)
        self.watchers.begin_anew("the server has taken the tree anew")
        if self.on_restart is not None:
            self.on_restart()

    def message(self, topic: Path, data: bytes) -> None:
        if topic.keys and topic[0] is SYSTEM:
            if topic in self.on_system_message:
                self.on_system_message[topic](data)
            return
        for deliver, wanted in list(self.monitors.items()):
            if topic[: len(wanted)] == wanted:
                deliver(topic, data)
