"""Patterns of paths: `+` is any one element, `#` any number of them, also none.

Used by the watch action. A pattern is a path whose elements `+` and `#` (strings) stand for
others; there is no way to name an entry that is really called so, nor need there be: watch its
parent.
"""

from __future__ import annotations

from moat_kv.path import Path

ONE = "+"
ANY = "#"


def literal_prefix(pattern: Path) -> Path:
    """The part of a pattern before its first wildcard."""
    for index, key in enumerate(pattern.keys):
        if key in (ONE, ANY):
            return pattern[:index]
    return pattern


def depth_limit(pattern: Path) -> int:
    """How far below the literal prefix a match can lie; -1 is without limit."""
    if ANY in pattern.keys:
        return -1
    return len(pattern) - len(literal_prefix(pattern))


def matches(pattern: Path, path: Path) -> bool:
    """Whether a path matches. At worst linear in the product of both lengths (at most 64 each)."""
    wanted, given = pattern.keys, path.keys
    all_bits = (2 << len(given)) - 1
    # Bit j: the pattern's elements so far can match the path's first j elements.
    reached = 1
    for element in wanted:
        if element == ANY:
            # From the lowest bit upwards.
            reached = all_bits & -(reached & -reached)
        elif element == ONE:
            reached = reached << 1 & all_bits
        else:
            there = 0
            for index, key in enumerate(given):
                if key == element:
                    there |= 1 << index
            reached = (reached & there) << 1
        if not reached:
            return False
    return bool(reached >> len(given) & 1)
