"""Hashes of subtrees, so that two trees can be compared without sending them.

A `Snapshot` is made for one request (`server.hash_stream`), told of every record before it is
applied (`server.store`), and walks in steps of bounded size. However long that takes and whatever
is written meanwhile, its result is of one revision. It changes nothing in the tree.

What is hashed is what has to be the same on all servers: of each entry with a value the path, the
value and the stamp (revision, time, record's id, session, end of life). Deleted entries and empty
inner nodes do not count, for they go at different times, nor does what is only pending. Each entry
has a hash of 32 bytes (BLAKE2b), and a subtree's hash is the sum of its entries' (mod 2**256): so
the order does not matter, in which servers have come to know of them. That tells of mistakes and
damage; it is not meant against somebody who forges entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import NamedTuple

import msgpack

from moat_kv.entry import Head, Record
from moat_kv.path import Path
from moat_kv.tree import tree as tree_module
from moat_kv.tree.node import Key, Node

HASH_BYTES = 32
_MODULUS = 1 << (8 * HASH_BYTES)
#: Children are told one by one up to so many, else in buckets by the hash of their names.
CHILDREN_LIMIT = 1_000
#: A bucket's prefix has at most so many bytes.
PREFIX_LIMIT = 4
#: A step ends at whichever comes first: nodes, or bytes of values.
STEP_NODES = 500
STEP_BYTES = 256 * 1024
#: When so many entries were written over during one walk, it begins anew.
TOUCHED_LIMIT = 200_000

_pack = msgpack.Packer(autoreset=True).pack


class Sum(NamedTuple):
    """The hash of some entries, and how many they are."""

    total: int = 0
    entries: int = 0

    def __add__(self, other: tuple[object, ...]) -> Sum:
        assert isinstance(other, Sum)
        return Sum((self.total + other.total) % _MODULUS, self.entries + other.entries)

    @property
    def packed(self) -> bytes:
        """The hash as it travels, 32 bytes."""
        return self.total.to_bytes(HASH_BYTES, "big")


NOTHING = Sum()


def hash_entry(path: bytes, head: Head, bound: Record | None) -> Sum:
    """One entry. `path` is packed; `bound` is its record if it belongs to a session or ends."""
    if head.value is None:
        return NOTHING
    session, expires_at = (None, None) if bound is None else (bound.session, bound.expires_at)
    stamp = (path, head.value, head.rev, head.at, head.origin, head.tick, session, expires_at)
    digest = blake2b(_pack(stamp), digest_size=HASH_BYTES).digest()
    return Sum(int.from_bytes(digest, "big"), 1)


def bucket_of(packed_name: bytes) -> bytes:
    """Where a child belongs by its name (a packed path of one element): `PREFIX_LIMIT` bytes."""
    return blake2b(packed_name, digest_size=PREFIX_LIMIT).digest()


class Snapshot:
    """The hashes of what is at and below a path, as of one revision.

    `prefix`: only of children whose bucket begins so. `rev`: as of this revision if it is still to
    come (`waits`), otherwise of the one at which `begin` is called; that also gives up waiting.
    """

    def __init__(
        self, tree: tree_module.Tree, path: Path, *, prefix: bytes = b"", rev: int = 0
    ) -> None:
        self.is_done = False
        #: What the hashes are of; None while that revision is waited for.
        self.rev: int | None = None
        #: Called when a revision that was waited for has come, or is waited for no more.
        self.on_begin: Callable[[], None] = lambda: None
        #: The entry at the path itself.
        self.own = NOTHING
        #: By packed name of one element, or by bucket: never both.
        self.children: dict[bytes, Sum] = {}
        self.buckets: dict[bytes, Sum] = {}
        self._tree = tree
        self._path = path
        self._prefix = prefix
        self._wanted = rev
        self._is_bucketed = False
        self._walk: Iterator[tuple[bytes, bytes, Node]] = iter(())
        # Entries that belong to a session or end by themselves, by their revisions.
        self._bound: dict[int, Record] = {}
        # What was written over since: the hash of what was there at `rev`, by packed path.
        self._touched: dict[bytes, Sum] = {}

    @property
    def waits(self) -> bool:
        """Its revision has not come yet."""
        return self.rev is None and self._wanted > self._tree.revision

    @property
    def total(self) -> Sum:
        """All entries at and below the path (with a prefix: of those children and the path's)."""
        total = self.own
        for part in (*self.children.values(), *self.buckets.values()):
            total += part
        return total

    def begin(self) -> None:
        """Hash the present state. Does nothing if that has begun."""
        if self.rev is None:
            self._start()
            self.on_begin()

    def applied(self) -> None:
        """Records were applied: perhaps up to just the revision that is waited for."""
        if self.rev is None and not self.waits:
            self.begin()

    def restart(self) -> None:
        """Begin anew with the present state: the tree has dropped nodes. Nothing before `begin`."""
        if self.rev is not None and not self.is_done:
            self._start()

    def _start(self) -> None:
        self.rev = self._tree.revision
        self.own = NOTHING
        self.children.clear()
        self.buckets.clear()
        self._touched.clear()
        self._bound = {record.rev: record for record in self._tree.bound.values()}
        self._walk = self._nodes()

    def before(self, record: Record) -> None:
        """This record is about to be applied. Called for each, until `is_done`.

        From the beginning on, or before that if a revision is waited for.
        """
        if self.rev is None:
            if record.rev <= self._wanted:
                return
            self.begin()
            self.rev = self._wanted  # nothing was written between
        if not record.path.startswith(self._path):
            return
        packed = record.path.packed
        if packed not in self._touched:
            if len(self._touched) >= TOUCHED_LIMIT:
                self.restart()
            node = self._tree.head(record.path)
            self._touched[packed] = NOTHING if node is None else self._hash(packed, node)

    def _hash(self, packed: bytes, node: Node) -> Sum:
        return hash_entry(packed, node, self._bound.get(node.rev))

    def step(self) -> None:
        """Look at the next nodes; `is_done` says when there are no more."""
        assert self.rev is not None
        rev = self.rev
        size = 0
        for count, (part, packed, node) in enumerate(self._walk, 1):
            if node.rev < 0:
                # What is pending covers it, and is not the log's.
                node = self._tree.head(Path.unpack(packed)) or _LOOKED_AT
            if node.rev > rev:
                # Only what was seen before it changed has been counted yet.
                self._add(part, self._touched.get(packed, NOTHING))
            elif node.value is not None:
                self._add(part, self._hash(packed, node))
                size += len(node.value)
            if count >= STEP_NODES or size >= STEP_BYTES:
                return
        self.is_done = True
        self._touched.clear()
        self._bound = {}

    def _add(self, part: bytes, more: Sum) -> None:
        if not more.entries:
            return
        if not part:
            self.own += more
        elif self._is_bucketed:
            self.buckets[part] = self.buckets.get(part, NOTHING) + more
        else:
            self.children[part] = self.children.get(part, NOTHING) + more

    def _nodes(self) -> Iterator[tuple[bytes, bytes, Node]]:
        """Each node with the part that it belongs to (empty: the path itself) and packed path."""
        node = self._tree.find(self._path)
        keys = list(node.children) if node is not None and node.children else []
        length = len(self._prefix)
        self._is_bucketed = len(keys) >> (8 * length) > CHILDREN_LIMIT and length < PREFIX_LIMIT
        return self._walk_parts(node, keys)

    def _walk_parts(
        self, node: Node | None, keys: list[Key]
    ) -> Iterator[tuple[bytes, bytes, Node]]:
        if node is None:
            return
        base, prefix = self._path.packed, self._prefix
        yield b"", base, node
        for key in keys:
            child = node.children.get(key) if node.children is not None else None
            name = tree_module.key_packed(key)
            part = name
            if prefix or self._is_bucketed:
                bucket = bucket_of(name)
                if not bucket.startswith(prefix):
                    yield b"", base, _LOOKED_AT
                    continue
                part = bucket[: len(prefix) + 1] if self._is_bucketed else name
            if child is not None:
                for packed, below in tree_module.walk(child, base + name):
                    yield part, packed, below


#: Stands for a name that was looked at only. Never changed.
_LOOKED_AT = Node()
