"""What becomes of a write that was kept while its server was cut off: the one place with the rules.

`engine.replaying` asks, once the server has caught up, for each write in its outbox. Every server
comes to the same answer from the same log, whichever is back first. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from moat_kv.engine.copy_store import Pending
from moat_kv.entry import Head


class Fate(enum.Enum):
    """What is to be done with a write, before the outbox drops it."""

    STORED = enum.auto()
    """Nothing: it is in the log, among the conflicts, or what is there is the same."""
    WRITE = enum.auto()
    """Publish it, on top of `Verdict.expect`."""
    WINS = enum.auto()
    """Publish it on top of `Verdict.expect`, and with it what is there as a conflict."""
    LOSES = enum.auto()
    """Keep it as a conflict; what is there stays."""


class Verdict(NamedTuple):
    """A fate, and on which record of the path it was decided."""

    fate: Fate
    expect: int
    """The revision that the path must still have then, 0 for none."""


def judge(
    pending: Pending, at: float, head: Head | None, since: Sequence[Head], *, has_lost: bool = False
) -> Verdict:
    """Compare a write, made at `at` in the engine's time, with what its path has in the log.

    `head`: the path's newest record, deletions included; None if it has none. `since`: its kept
    records above `pending.base`, newest first, `head` among them. `has_lost`: its record is among
    the conflicts.
    """
    if has_lost:
        # Before a crash, that is. Of the time something else may be known since then.
        return Verdict(Fate.STORED, 0 if head is None else head.rev)
    if head is None:
        return _without_head(pending)
    if any(_id(record) == pending.id for record in since):
        # Whoever has written over it since knew it.
        return Verdict(Fate.STORED, head.rev)
    if head.rev == pending.base or _id(head) in pending.earlier:
        # Each publish expects what it was based on, so below an own record there is none of others.
        return Verdict(Fate.WRITE, head.rev)
    mine = (at, pending.origin, pending.tick)
    wins = mine > (head.at, head.origin, head.tick)
    if head.value == pending.value:
        # The later time has to be known to a third server, whose write may be between the two.
        return Verdict(Fate.WRITE if wins else Fate.STORED, head.rev)
    return Verdict(Fate.WINS if wins else Fate.LOSES, head.rev)


def _without_head(pending: Pending) -> Verdict:
    if pending.base == 0:
        return Verdict(Fate.WRITE, 0)
    if pending.value is None:
        return Verdict(Fate.STORED, 0)
    # It changed an entry that was deleted so long ago that the deletion is forgotten; writing it
    # would bring the entry back.
    return Verdict(Fate.LOSES, 0)


def _id(head: Head) -> str:
    return f"{head.origin}:{head.tick}"
