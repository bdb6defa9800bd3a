"""Whether everything that was acknowledged is there afterwards, and which part of it is not.

Takes a history of writes and deletions (`history`), and what is there in the end. A write that was
acknowledged must be found, unless another one of its key has replaced it; one that was answered
`pending` must be found, or be among the conflicts. What failed for certain must not be found. Pure.

Losses are sorted by where they stand among all acknowledged writes, in the order of their answers:
before the first that was found (a copy began too late), after the last (the end was not kept), or
in between (a hole). That tells where to look.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tests.faults import history
from tests.faults.history import Operation, Value

#: The kinds that write a value.
WRITES = ("write", "cas")


@dataclass(frozen=True, kw_only=True)
class Membership:
    """What became of all writes and deletions."""

    acknowledged: int
    pending: int
    prefix: tuple[Operation, ...]
    """Acknowledged and lost, before the first that is there; all of them if none is there."""
    middle: tuple[Operation, ...]
    end: tuple[Operation, ...]
    """Lost after the last that is there."""
    pending_lost: tuple[Operation, ...]
    """Pending, and neither there nor among the conflicts."""
    strangers: tuple[str, ...]
    """A line for each key that holds what nobody wrote there, or what had failed for certain."""

    @property
    def lost(self) -> tuple[Operation, ...]:
        """All acknowledged ones that are lost, in the order of their answers."""
        return self.prefix + self.middle + self.end

    @property
    def is_fine(self) -> bool:
        return not (self.lost or self.pending_lost or self.strangers)

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} acknowledged, {len(self.lost)} lost (prefix {len(self.prefix)},"
            f" middle {len(self.middle)}, end {len(self.end)}); {self.pending} pending,"
            f" {len(self.pending_lost)} lost; {len(self.strangers)} that nobody wrote"
        )


def check(
    operations: Sequence[Operation],
    found: Mapping[str, Value],
    conflicts: Collection[Value] = (),
) -> Membership:
    """Compare a history with what is there: by key its value, and the values of all conflicts.

    Operations that are neither writes nor deletions are left out. Raises ValueError if a value was
    written twice to a key.
    """
    asked = [one for one in operations if one.kind in (*WRITES, "delete")]
    keys = history.by_key(asked)
    lost: set[Operation] = set()
    pending_lost: list[Operation] = []
    strangers = [f"{key}: {found[key]}, nobody wrote there" for key in found.keys() - keys.keys()]
    for key, ones in keys.items():
        present = _present(key, ones, found.get(key))
        if isinstance(present, str):
            strangers.append(present)
        for one in ones:
            if isinstance(present, str) or _is_kept(one, present, ones):
                continue
            if one.outcome == "ok":
                lost.add(one)
            elif one.value not in conflicts:
                pending_lost.append(one)
    acknowledged = sorted((one for one in asked if one.outcome == "ok"), key=_end)
    prefix, middle, end = _sorted_out(acknowledged, lost)
    return Membership(
        acknowledged=len(acknowledged),
        pending=sum(one.outcome == "pending" for one in asked),
        prefix=prefix,
        middle=middle,
        end=end,
        pending_lost=tuple(pending_lost),
        strangers=tuple(sorted(strangers)),
    )


def _present(key: str, ones: Sequence[Operation], value: Value | None) -> Operation | str | None:
    """The write that is there; None if nothing is; else a line that says what is wrong."""
    if value is None:
        return None
    writers = [one for one in ones if one.kind in WRITES and one.value == value]
    if len(writers) > 1:
        raise ValueError(f"{key}: the value {value} was written twice")
    if not writers:
        return f"{key}: {value}, which nobody wrote there"
    if writers[0].outcome == "failed":
        return f"{key}: {value}, which had failed ({writers[0].error})"
    return writers[0]


def _is_kept(one: Operation, present: Operation | None, ones: Sequence[Operation]) -> bool:
    """Whether an operation is what is there, or something else of its key has replaced it."""
    if one is present or one.outcome not in ("ok", "pending"):
        return True
    if one.outcome == "pending":
        # What ran beside it may have won; then it is a conflict. What was sent later replaced it.
        return any(
            other.outcome != "failed" and other.begin > _end(one)
            for other in ones
            if other is present or (present is None and other.kind == "delete")
        ) or (present is None and one.kind == "delete")
    if present is not None:
        return _may_follow(present, one)
    deletions = [other for other in ones if other.kind == "delete" and other.outcome != "failed"]
    return any(other is one or _may_follow(other, one) for other in deletions)


def _may_follow(other: Operation, one: Operation) -> bool:
    """Whether `other` may have taken effect after `one`, which was acknowledged."""
    if other.outcome == "ok" and other.rev and one.rev:
        return other.rev > one.rev or (other.rev == one.rev and one.deleted is False)
    return other.is_open or _end(other) >= one.begin


def _end(one: Operation) -> float:
    return math.inf if one.end is None else one.end


def _sorted_out(
    acknowledged: Sequence[Operation], lost: Collection[Operation]
) -> tuple[tuple[Operation, ...], tuple[Operation, ...], tuple[Operation, ...]]:
    there = [index for index, one in enumerate(acknowledged) if one not in lost]
    if not there:
        return tuple(acknowledged), (), ()
    first, last = there[0], there[-1]
    return (
        tuple(acknowledged[:first]),
        tuple(one for one in acknowledged[first:last] if one in lost),
        tuple(acknowledged[last + 1 :]),
    )
