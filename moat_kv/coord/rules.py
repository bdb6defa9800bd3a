"""Whose turn it is: who of those that stand in a line may go on.

Everybody who wants something has a ticket in the line, an entry whose revision is its place. Locks
and semaphores, in whatever form, differ only in whom each has to wait for. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moat_kv.path import Path

EXCLUSIVE, SHARED, SEATS = "exclusive", "shared", "seats"


@dataclass(frozen=True, kw_only=True)
class Mode:
    """What a ticket is for."""

    kind: str = EXCLUSIVE
    seats: int = 1
    """How many may be in at once, for `SEATS`."""


class Ticket(NamedTuple):
    """One that stands in the line."""

    rev: int
    """Its place: lower ones have come earlier. It is the fence, too."""
    path: Path
    facts: Mapping[str, Any]
    """What it says about its owner: `process`, `client`, `kind`, and `value` if one was given."""

    @property
    def holder(self) -> str:
        """The owner, for people."""
        return str(self.facts.get("client", "?"))


def blockers(mode: Mode, earlier: Sequence[Ticket]) -> Sequence[Ticket]:
    """Those that stand in the way, in their order; empty: it is its turn.

    An exclusive one waits for all that came earlier, a shared one only for those that are not
    shared, so nobody is overtaken by one that would make it wait longer. A seat is free if fewer
    than that many came earlier.
    """
    if mode.kind == SHARED:
        return [each for each in earlier if each.facts.get("kind") != SHARED]
    if mode.kind == SEATS and len(earlier) < mode.seats:
        return []
    return earlier


def awaited(mode: Mode, blocking: Sequence[Ticket]) -> Sequence[Ticket]:
    """Of which tickets one has to go before it is worth looking again.

    For locks that is the last one of those in the way: it goes after the others as a rule, so that
    each that leaves wakes up one, not all. A seat may become free by any.
    """
    return blocking if mode.kind == SEATS else blocking[-1:]
