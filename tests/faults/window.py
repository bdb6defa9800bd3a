"""The smallest part of a history that cannot be ordered, for people to look at.

Called by `linearizability.check_key` with the step where its search ended. First the earliest end
is looked for at which it has gone wrong, then the latest time from which on it does so whatever was
there before; then, one by one, what was seen is left out and what was written may take effect at
any time, as long as it still goes wrong.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tests.faults import linearizability
from tests.faults.history import Operation
from tests.faults.register import Register, Step

#: What one search among many may look at: so many states, and so many for each step.
SEARCH_STATES = 3_000
SEARCH_STATES_EACH = 4
#: After so many in all the window is good enough.
STATES_ENOUGH = 1_000_000


def smallest(register: Register, failed: Step, *, states_limit: int) -> list[Operation]:
    """The operations without each of which the rest could be ordered, in order of their begins."""
    last = failed.operation.end
    assert last is not None
    window = _Window(register, states_limit)
    window.end_early(last)
    window.start_late()
    window.thin_out()
    return [step.operation for step in window.kept]


class _Window:
    def __init__(self, register: Register, states_limit: int) -> None:
        self._register = register
        self._limit = states_limit
        #: None: from the beginning, when there was nothing.
        self._since: float | None = None
        self.kept = list(register.steps)
        self._loosened: list[Step] = []
        self._looked_at = 0

    def _goes_wrong(self, steps: Sequence[Step], since: float | None) -> bool:
        """Whether these cannot be ordered. A search that would take long is not made: no."""
        for step in self._register.steps:
            step.loose = False
        for step in self._loosened:
            # The register asks those that it knows when they were begun.
            self._register.steps[step.number].loose = True
        limit = min(self._limit, SEARCH_STATES + SEARCH_STATES_EACH * len(steps))
        search = linearizability.Search(self._register, states_limit=limit, since=since)
        try:
            return search.run([*self._loosened, *steps]) is not None
        except linearizability.GaveUp:
            return False
        finally:
            self._looked_at += search.looked_at

    def _from(self, since: float) -> list[Step]:
        """What has not ended by then."""
        return [step for step in self.kept if not step.must or _end(step) >= since]

    def end_early(self, hint: float) -> None:
        """Leave out what begins after the first end at which it has gone wrong.

        `hint`: the search, which looks ahead at revisions, has stopped there.
        """
        ends = sorted({_end(step) for step in self.kept if step.must and _end(step) >= hint})
        low, high = -1, 0  # up to `low` it does not go wrong yet, up to `high` it does
        while high < len(ends) - 1 and not self._goes_wrong(self._until(ends[high]), None):
            low, high = high, min(2 * high + 1, len(ends) - 1)
        while high - low > 1:
            middle = (low + high) // 2
            if self._goes_wrong(self._until(ends[middle]), None):
                high = middle
            else:
                low = middle
        self.kept = self._until(ends[high])

    def _until(self, last: float) -> list[Step]:
        """What has begun by then."""
        return [step for step in self.kept if step.begin <= last]

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
            if size == 1 or self._looked_at > STATES_ENOUGH:
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
