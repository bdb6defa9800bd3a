"""One place in the tree: perhaps a value, perhaps children.

Made and changed by `tree.Tree` alone; read by everybody, also as the `Head` that an engine judges
by. Kept small: a million of these are alive in a large server.
"""

from __future__ import annotations

from moat_kv import path as path_module

Key = str | path_module.PackedKey
"""What a node's children are keyed by (see `Path.keys`): True, 1 and 1.0 stay apart."""


class Node:
    """A node. `rev == 0`: nothing was ever written here. `rev > 0` without value: a tombstone."""

    __slots__ = ("at", "children", "origin", "rev", "tick", "value")

    def __init__(self) -> None:
        self.value: bytes | None = None
        self.rev = 0
        self.at = 0.0
        self.origin = ""
        self.tick = 0
        # None rather than an empty dict: most nodes are leaves.
        self.children: dict[Key, Node] | None = None
