"""The tree of a server: a pure function of the log's prefix that was applied.

`server.store` applies records here in the order of revisions; actions read it. Walking yields
packed paths, because most walks end on the wire.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import msgpack

from moat_kv import entry
from moat_kv.path import PackedKey, Path
from moat_kv.tree import node as node_module

Node = node_module.Node
Key = node_module.Key

_pack = msgpack.Packer(autoreset=True).pack
#: The root's child that holds system data; walks that start above it pass it by.
SYSTEM_KEY = PackedKey(_pack(entry.SYSTEM))


class Tree:
    """All nodes, with the revision up to which they are current."""

    def __init__(self) -> None:
        self.root = Node()
        self.revision = 0
        #: Tombstones at or below this revision have been dropped.
        self.floor = 0
        self.entries = 0
        #: What not every node needs: entries that belong to a session or end by themselves.
        self.bound: dict[Path, entry.Record] = {}
        # Each deleted path with the revision of that, in rising order: as many as there are deleted
        # paths, however often one is set and deleted. (A plain dict would look at all that were
        # taken from its beginning, each time that its first one is asked for.)
        self._tombstones: OrderedDict[Path, int] = OrderedDict()
        # Paths that show what is not in the log yet, with what the log has there.
        self._below: dict[Path, Node] = {}

    def find(self, path: Path) -> Node | None:
        """The node at a path, or None. It may be a mere inner node (rev 0) or a tombstone."""
        node = self.root
        for key in path.keys:
            children = node.children
            if children is None:
                return None
            found = children.get(key)
            if found is None:
                return None
            node = found
        return node

    def head(self, path: Path) -> Node | None:
        """The newest record's state at a path, tombstones included; None if never written.

        It is what the log says, also where something else covers it.
        """
        if self._below and path in self._below:
            below = self._below[path]
            return below if below.rev else None
        # As `find`, whose call would be a fifth of the time: each write asks this.
        node = self.root
        for key in path.keys:
            children = node.children
            if children is None:
                return None
            found = children.get(key)
            if found is None:
                return None
            node = found
        return node if node.rev else None

    def apply(self, record: entry.Record) -> None:
        """Take one record; its revision is above all that were taken before."""
        node = self.root
        for key in record.path.keys:
            children = node.children
            if children is None:
                children = node.children = {}
            child = children.get(key)
            if child is None:
                child = children[key] = Node()
            node = child
        if self._below:
            node = self._below.get(record.path, node)
        value = record.value
        self.entries += (value is not None) - (node.value is not None)
        if node.rev and node.value is None:
            del self._tombstones[record.path]
        node.value = value
        node.rev = self.revision = record.rev
        node.at = record.at
        node.origin = record.origin
        node.tick = record.tick
        if value is None:
            self._tombstones[record.path] = record.rev
        if value is not None and (record.session is not None or record.expires_at is not None):
            self.bound[record.path] = record
        elif self.bound:
            self.bound.pop(record.path, None)

    def drop_tombstones(self, floor: int) -> None:
        """Forget deletions at or below this revision, and inner nodes that are empty then."""
        self.floor = max(self.floor, floor)
        tombstones = self._tombstones
        while tombstones:
            path = next(iter(tombstones))
            if tombstones[path] > floor:
                return
            del tombstones[path]
            node = self._below.get(path) or self.find(path)
            assert node is not None  # a tombstone is a node
            node.rev = 0
            self._prune(path)

    def cover(self, record: entry.Record) -> None:
        """Show a pending record at its path, whatever the log has there, until `uncover`."""
        node = self.root
        for key in record.path.keys:
            if node.children is None:
                node.children = {}
            node = node.children.setdefault(key, Node())
        if record.path not in self._below:
            below = self._below[record.path] = Node()
            _copy(node, below)
        node.value, node.rev, node.at = record.value, record.rev, record.at
        node.origin, node.tick = record.origin, record.tick

    def uncover(self, path: Path) -> Node | None:
        """Show what the log has at a path; that node, whose `rev` is 0 if the log has nothing.

        None if the path is not covered.
        """
        below = self._below.pop(path, None)
        if below is None:
            return None
        node = self.find(path)
        assert node is not None  # it was covered
        _copy(below, node)
        self._prune(path)
        return node

    def is_covered(self, path: Path) -> bool:
        return path in self._below

    def covers(self) -> list[entry.Record]:
        """The pending records that are shown."""
        found = [(path, self.find(path)) for path in self._below]
        return [
            entry.Record(node.rev, path, node.value, node.at, node.origin, node.tick)
            for path, node in found
            if node is not None
        ]

    @property
    def tombstones(self) -> int:
        """How many deletions are remembered."""
        return len(self._tombstones)

    def _prune(self, path: Path) -> None:
        nodes = [self.root]
        for key in path.keys:
            children = nodes[-1].children
            assert children is not None  # the path was found a moment ago
            nodes.append(children[key])
        for depth in range(len(path.keys), 0, -1):
            node = nodes[depth]
            if node.rev or node.children:
                return
            siblings = nodes[depth - 1].children
            assert siblings is not None
            del siblings[path.keys[depth - 1]]
            if not siblings:
                nodes[depth - 1].children = None


def _copy(node: Node, to: Node) -> None:
    """All but the children."""
    to.value, to.rev, to.at, to.origin, to.tick = (
        node.value,
        node.rev,
        node.at,
        node.origin,
        node.tick,
    )


def key_packed(key: Key) -> bytes:
    """A child's key as it stands in a packed path."""
    return bytes(key) if type(key) is PackedKey else _pack(key)


def walk(
    node: Node,
    prefix: bytes,
    *,
    min_depth: int = 0,
    max_depth: int = -1,
    at_root: bool = False,
) -> Iterator[tuple[bytes, Node]]:
    """Each node from here downwards with its packed path, a parent before its children.

    `prefix` is the packed path of `node` itself, or empty for paths relative to it. `max_depth`
    -1 is without limit. Nodes without a value come too, and an empty one stands for each that is
    above `min_depth`: a step is never long. The tree may change between two steps; children that
    are added to a node after it was reached may be left out. `at_root` leaves the system data out.
    """
    yield prefix, node if min_depth <= 0 else _NOTHING
    if max_depth == 0 or not node.children:
        return
    stack = [(1, prefix, node, _keys(node, at_root))]
    while stack:
        depth, above, parent, remaining = stack[-1]
        if not remaining:
            stack.pop()
            continue
        key = remaining.pop()
        child = parent.children.get(key) if parent.children is not None else None
        if child is None:
            continue  # gone since
        packed = above + key_packed(key)
        yield packed, child if depth >= min_depth else _NOTHING
        if child.children and (max_depth < 0 or depth < max_depth):
            stack.append((depth + 1, packed, child, _keys(child, False)))


#: Stands for nodes that are not asked for. Never changed.
_NOTHING = Node()


def _keys(node: Node, at_root: bool) -> list[Key]:
    """The keys of a node's children, last first, so that they can be taken from the end."""
    keys = list(node.children) if node.children else []
    keys.reverse()
    if at_root and SYSTEM_KEY in keys:
        keys.remove(SYSTEM_KEY)
    return keys
