"""Whether the log has an earlier write on top of a later one that was acknowledged.

A write that hung somewhere, and was given up or answered as pending, may still come, but not over
what was asked for after that, and acknowledged: linearizability alone lets it, as what is open may
happen at any time. Takes a history (`history`) and the log's records of its keys. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.faults import history
from tests.faults.history import Operation, Value

#: So much later has the later one to be, in seconds: servers know the time that well.
APART_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Undone:
    """An acknowledged write, and the earlier one that came after it."""

    later: Operation
    earlier: Operation
    rev: int
    """Where the earlier one is in the log."""

    def __str__(self) -> str:
        return f"{self.later.key}: {self.later} was undone at revision {self.rev} by {self.earlier}"


def find(
    operations: Sequence[Operation],
    logs: Mapping[str, Mapping[int, Value | None]],
    *,
    outcomes: Sequence[history.Outcome] = ("ok", "pending", "unknown"),
) -> list[Undone]:
    """What was undone, by key. `logs`: of each key its records' values by revision, deletions None.

    `outcomes`: of the earlier ones that are looked at.
    """
    found = []
    for key, ones in history.by_key(operations).items():
        writes = {one.value: one for one in ones if one.kind in ("write", "cas")}
        acknowledged = [one for one in writes.values() if one.outcome == "ok"]
        for rev, value in logs.get(key, {}).items():
            earlier = writes.get(value)
            if earlier is None or earlier.end is None or earlier.outcome not in outcomes:
                continue
            begun_after = earlier.end + APART_S
            found += [
                Undone(later=later, earlier=earlier, rev=rev)
                for later in acknowledged
                if later.begin > begun_after and later.rev is not None and later.rev < rev
            ]
    return found
