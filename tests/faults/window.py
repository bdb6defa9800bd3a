"""The smallest part of a history that cannot be ordered, for people to look at.

Called by `linearizability.check_key` with the step where its search ended. First the latest time is
looked for from which on it goes wrong whatever was there before; then, one by one, what was seen is
left out and what was written may take effect at any time, as long as it still goes wrong.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tests.faults import linearizability
from tests.faults.history import Operation
from tests.faults.register import Register, Step


def smallest(register: Register, failed: Step, *, states_limit: int) -> list[Operation]:
    """The operations without each of which the rest could be ordered, in order of their begins."""
    last = failed.operation.end
    assert last is not None
    window = _Window(register, last, states_limit)
    window.start_late()
    window.thin_out()
    return [step.operation for step in window.kept]


class _Window:
    def __init__(self, register: Register, last: float, states_limit: int) -> None:
        self._register = register
        self._limit = states_limit
        #: None: from the beginning, when there was nothing.
        self._since: float | None = None
        self.kept = [step for step in register.steps if step.begin <= last]
        self._loosened: list[Step] = []

    def _goes_wrong(self, steps: Sequence[Step], since: float | None) -> bool:
        for step in self._register.steps:
            step.loose = False
        for step in self._loosened:
            # The register asks those that it knows when they were begun.
            self._register.steps[step.number].loose = True
        search = linearizability.Search(self._register, states_limit=self._limit, since=since)
        try:
            return search.run([*self._loosened, *steps]) is not None
        except linearizability.GaveUp:
            return False

    def _from(self, since: float) -> list[Step]:
        """What has not ended by then."""
        return [step for step in self.kept if not step.must or _end(step) >= since]

    def start_late(self) -> None:
        """Leave out what has ended before the latest possible start."""
        starts = sorted({_end(step) for step in self.kept if step.must})
        low, high = 0, len(starts)  # it goes wrong from `low` on, if at all, and not from `high` on
        if not self._goes_wrong(self._from(starts[0]), starts[0]):
            return
        while high - low > 1:
            middle = (low + high) // 2
            if self._goes_wrong(self._from(starts[middle]), starts[middle]):
                low = middle
            else:
                high = middle
        self._since = starts[low]
        self.kept = self._from(self._since)

    def thin_out(self) -> None:
        """Let go of whatever is not needed: many at a time first."""
        size = max(1, len(self.kept) // 2)
        while True:
            index = 0
            while index < len(self.kept):
                part = self.kept[index : index + size]
                if not self._let_go(part):
                    index += size
            if size == 1:
                return
            size = max(1, size // 2)

    def _let_go(self, part: Sequence[Step]) -> bool:
        before = list(self._loosened)
        gone = set(part)
        rest = [step for step in self.kept if step not in gone]
        self._loosened += [_loose(step) for step in part if _changes(step)]
        if self._goes_wrong(rest, self._since):
            self.kept = rest
            return True
        self._loosened = before
        return False


def _end(step: Step) -> float:
    end = step.operation.end
    return math.inf if end is None else end


def _changes(step: Step) -> bool:
    """Whether it may have changed what is there; otherwise it has only seen it."""
    one = step.operation
    return one.kind != "read" and one.outcome != "failed" and one.deleted is not False


def _loose(step: Step) -> Step:
    """The same, but it may take effect at any time, or never."""
    return dataclasses.replace(step, must=False, begin=-math.inf, loose=True)
