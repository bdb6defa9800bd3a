"""One key as a register with revisions: what may follow what. The model of `linearizability`.

An entry is there with a value and a revision, or is not. A write gives it a revision above all that
it had; compare-and-set asks for the present one; a deletion leaves nothing. Each value is written
once, so that a read names the write that it saw. Pure.

Writes of which nobody has ever seen anything are all alike: they leave something there with a
revision that nobody knows. That keeps a check cheap that has hundreds of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.faults.history import Operation, Value

#: Revisions that stand for something else than one.
NOTHING, SOMETHING, ANYTHING = 0, -1, -2


class State(NamedTuple):
    """What is there."""

    rev: int
    """NOTHING: no entry; SOMETHING: one that nobody has seen; ANYTHING: it may be whatever."""
    top: int
    """The least revision that the last write or deletion can have given; the next is above it."""


#: The kinds that write a value.
WRITES = ("write", "cas")

START = State(NOTHING, 0)
UNKNOWN = State(ANYTHING, 0)


class Unusable(ValueError):
    """A history that cannot be checked: the words say why."""


@dataclass(eq=False, slots=True)
class Step:
    """An operation as the search sees it."""

    operation: Operation
    number: int
    """The order in which steps begin."""
    must: bool
    """It must have its place before it ends; otherwise it may have one at any later time."""
    rev: int | None
    """Of a write: the revision it has given, if that is known. Of a read: what it saw."""
    begin: float
    loose: bool = False
    """It may take effect at any time, even before it was begun."""

    @property
    def gives(self) -> int | None:
        """The revision that it has given, if it must have its place and that is known."""
        one = self.operation
        writes = one.kind != "read" and one.outcome == "ok" and one.deleted is not False
        return self.rev if writes and self.must else None

    @property
    def asks(self) -> list[int]:
        """The revisions of which it asks, or tells, that they are or were there."""
        one = self.operation
        seen = one.rev if one.kind == "read" else None
        return [rev for rev in (seen, one.expect, one.have) if rev]


class Register:
    """The steps of one key's history, and what each does to a state.

    `exact_conflicts`: the revision that a Conflict names was there when it was refused. Otherwise
    only the expected one was not.
    """

    def __init__(self, operations: Sequence[Operation], *, exact_conflicts: bool = True) -> None:
        self._exact = exact_conflicts
        ordered = sorted(operations, key=lambda one: (one.begin, one.number))
        _check_usable(ordered)
        self._readers = {
            one.value: one for one in ordered if one.kind == "read" and one.value is not None
        }
        self.steps = [self._step(number, one) for number, one in enumerate(ordered)]
        self._writers = {
            step.operation.value: step for step in self.steps if step.operation.kind in WRITES
        }
        #: Revisions of which it is known what wrote them.
        self.known: dict[int, Step] = {}
        self._twice: tuple[Step, Step] | None = None
        for step in self._writers.values():
            if step.rev:
                other = self.known.setdefault(step.rev, step)
                self._twice = self._twice if other is step else (other, step)

    def _step(self, number: int, one: Operation) -> Step:
        rev = one.rev
        if not rev and one.kind in WRITES and one.value in self._readers:
            rev = self._readers[one.value].rev
        return Step(one, number, not one.is_open, rev, one.begin)

    def contradiction(self) -> list[Operation]:
        """The operations that contradict each other in whatever order; mostly there are none."""
        if self._twice is not None:
            return [one for step in self._twice for one in self._why(step)]
        for step in self.steps:
            read = step.operation
            if read.kind != "read" or read.value is None:
                continue
            writer = self._writers.get(read.value)
            if writer is None:
                return [read]
            if writer.rev != read.rev:
                return [*self._why(writer), read]
        return []

    def _why(self, writer: Step) -> list[Operation]:
        """A write, and the read that tells its revision if its own answer does not."""
        one = writer.operation
        return [one] if one.rev or one.value is None else [one, self._readers[one.value]]

    def after(self, state: State, step: Step, since: float) -> State | None:
        """The state after a step; None if it cannot come there.

        `since`: when the state was ANYTHING, which is what had been begun by then.
        """
        one = step.operation
        if one.outcome == "failed":
            return self._after_conflict(state, one, since)
        if one.kind == "read":
            return self._holding(state, one.rev or NOTHING, since)
        top = state.top
        if one.expect is not None:
            held = self._holding(state, one.expect, since)
            if held is None:
                return None
            top = max(held.top, one.expect)
            state = held
        if one.kind == "delete":
            return _after_delete(state, step, top)
        if not step.rev:
            return State(SOMETHING, top + 1)
        return State(step.rev, step.rev) if step.rev > top else None

    def _holding(self, state: State, rev: int, since: float) -> State | None:
        """The state, if that revision is there (NOTHING: none); with what this tells of it."""
        if state.rev == rev:
            return state
        if rev == NOTHING:
            return State(NOTHING, state.top) if state.rev == ANYTHING else None
        if state.rev == ANYTHING:
            writer = self.known.get(rev)
            begun = writer is None or writer.loose or writer.begin < since
            return State(rev, rev) if begun and rev > state.top else None
        # What nobody has seen has a revision that no known write has given.
        unseen = state.rev == SOMETHING and rev >= state.top and rev not in self.known
        return State(rev, rev) if unseen else None

    def _after_conflict(self, state: State, one: Operation, since: float) -> State | None:
        if self._exact and one.have is not None:
            return self._holding(state, one.have, since) if one.have != one.expect else None
        return None if state.rev == one.expect else state


def _after_delete(state: State, step: Step, top: int) -> State | None:
    one = step.operation
    if not step.must:
        above = step.rev or top + 1
        return State(NOTHING, above) if state.rev != NOTHING and above > top else None
    rev = one.rev or 0
    if one.deleted is False:
        if state.rev not in (NOTHING, ANYTHING) or 0 < rev < top:
            return None
        return State(NOTHING, max(top, rev))
    if state.rev == NOTHING or 0 < rev <= top:
        return None
    return State(NOTHING, max(top, rev))


def _check_usable(operations: Sequence[Operation]) -> None:
    """Raises Unusable for what no client could have recorded so."""
    written: set[Value] = set()
    ends: dict[str, float] = {}
    for one in operations:
        words = f"{one.key}: operation {one.number}"
        if one.kind in WRITES:
            if one.value is None or one.value in written:
                raise Unusable(f"{words} writes nothing, or what was written before")
            written.add(one.value)
        elif one.kind == "read" and bool(one.rev) != (one.value is not None):
            raise Unusable(f"{words} reads a value without a revision, or the other way round")
        if not one.is_open:
            if one.end is None or one.end < one.begin:
                raise Unusable(f"{words} was answered, but has no end")
            if one.begin < ends.get(one.client, one.begin):
                raise Unusable(f"{words}: its client still waits for another answer")
            ends[one.client] = one.end
