"""Whether the answers that clients got can be explained by one register: one key at a time.

The search is Wing and Gong's (1993), as Lowe gave it ("Testing for linearizability", 2017): events
are taken in the order of time, and operations get their place only when one of them has ended and
must have had it ("just in time"); what was reached is kept once ("memoised"). Operations of which
nobody knows whether they happened may have their place at any later time, or never.

`check` judges a history; `python -m tests.faults.linearizability FILE` one that was recorded
earlier. A search that gives up counts as a failure, as does a history that cannot be judged. Taken
are reads with `strict` (others may be of a server's own copy), all writes and deletions, and
refusals with Conflict, which tell what was there.
"""

from __future__ import annotations

import argparse
import bisect
import pathlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.faults import history
from tests.faults.history import Operation
from tests.faults.register import (
    ANYTHING,
    NOTHING,
    SOMETHING,
    START,
    UNKNOWN,
    Register,
    State,
    Step,
    Unusable,
)

#: A key that more clients have worked on is refused: the search may grow with 2 to this power.
CLIENTS_LIMIT = 8
#: So many states are looked at before a search gives up.
STATES_LIMIT = 5_000_000

#: What is there, the pending steps that have had their place (a bit each), and how many writes and
#: deletions of unknown outcome were made use of.
Config = tuple[State, int, int, int]
# The same, by the revision that is there and by the bits. Of what else there is (the bound on later
# revisions, the two counts) only what is not worse than another: less leaves more open.
Reached = dict[tuple[int, int], list[tuple[int, int, int]]]


class TooManyClients(Unusable):
    """More clients on a key than can be searched in useful time."""


class GaveUp(Exception):
    """The search has looked at as many states as it may."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of one key."""

    key: str
    answer: Literal["fine", "wrong", "unknown"]
    """unknown: the search gave up. That counts as a failure."""
    operations: int
    window: tuple[Operation, ...] = ()
    """If wrong: the operations that cannot be ordered; without any of them the rest could."""

    @property
    def is_fine(self) -> bool:
        return self.answer == "fine"

    def __str__(self) -> str:
        if self.answer == "fine":
            return f"{self.key}: {self.operations} operations can be ordered"
        if self.answer == "unknown":
            return f"{self.key}: gave up on {self.operations} operations"
        began = min(one.begin for one in self.window)
        lines = [f"{self.key}: {len(self.window)} of {self.operations} cannot be ordered"]
        for one in self.window:
            end = f"{1000 * (one.end - began):9.3f}" if one.end is not None else "        -"
            lines.append(f"  {1000 * (one.begin - began):9.3f} ..{end} ms  {one}")
        return "\n".join(lines)


def check(
    operations: Iterable[Operation],
    *,
    exact_conflicts: bool = True,
    states_limit: int = STATES_LIMIT,
) -> list[Verdict]:
    """A verdict for each key, in order of their names.

    `exact_conflicts`: see `register.Register`. Raises Unusable, TooManyClients.
    """
    return [
        check_key(key, ones, exact_conflicts=exact_conflicts, states_limit=states_limit)
        for key, ones in sorted(history.by_key(operations).items())
    ]


def check_key(
    key: str,
    operations: Sequence[Operation],
    *,
    exact_conflicts: bool = True,
    states_limit: int = STATES_LIMIT,
) -> Verdict:
    """A verdict for one key's operations."""
    clients = {one.client for one in operations}
    if len(clients) > CLIENTS_LIMIT:
        raise TooManyClients(f"{key}: {len(clients)} clients, at most {CLIENTS_LIMIT} can be had")
    told = [one for one in operations if tells(one)]
    register = Register(told, exact_conflicts=exact_conflicts)
    window = register.contradiction()
    if not window:
        try:
            failed = Search(register, states_limit=states_limit).run(register.steps)
        except GaveUp:
            return Verdict(key=key, answer="unknown", operations=len(told))
        if failed is None:
            return Verdict(key=key, answer="fine", operations=len(told))
        from tests.faults import window as window_module

        window = window_module.smallest(register, failed, states_limit=states_limit)
    return Verdict(key=key, answer="wrong", operations=len(told), window=tuple(window))


def tells(operation: Operation) -> bool:
    """Whether it says anything of the register."""
    if operation.outcome == "failed":
        return operation.error == "Conflict" and operation.expect is not None
    if operation.kind == "read":
        return operation.outcome == "ok" and operation.strict
    return True


class Search:
    """One pass over steps. `since`: the time from which on the state is known to be ANYTHING."""

    def __init__(
        self, register: Register, *, states_limit: int, since: float | None = None
    ) -> None:
        self._register = register
        self._limit = states_limit
        self._since = -1.0 if since is None else since
        self._start = START if since is None else UNKNOWN
        #: How many states it has cost.
        self.looked_at = 0
        # Revisions that matter to some step, and the least that is given by one still to begin.
        self._asked_for: set[int] = set()
        self._to_come: int | None = None
        self._bits: dict[Step, int] = {}
        # Those of unknown outcome: with a known revision, and the others by what they need.
        self._open: list[Step] = []
        self._writes = 0
        self._deletes = 0
        self._conditional: dict[int, list[Step]] = {}
        # Deletions that may have their place anywhere, by the revisions they have given.
        self._deletions: list[int] = []

    def run(self, steps: Iterable[Step]) -> Step | None:
        """The step at whose end no order is left; None if there is one to the last.

        Steps that must have a place but began before `since` may have had it before. Raises GaveUp.
        """
        reached: Reached = {(self._start.rev, 0): [(self._start.top, 0, 0)]}
        events = _events(steps)
        self._asked_for = {rev for _, _, _, step in events for rev in step.asks}
        for (_, is_end, _, step), self._to_come in zip(events, _least_to_come(events), strict=True):
            if is_end:
                bit = self._bits[step]
                reached = self._advance(reached, bit)
                del self._bits[step]
                if not reached:
                    return step
                self._forget(min(top for each in reached.values() for top, _, _ in each))
            elif step.must:
                bit = self._free_bit()
                self._bits[step] = bit
                if self._start == UNKNOWN and step.begin < self._since:
                    reached |= {
                        (state, mask | bit): used for (state, mask), used in reached.items()
                    }
            else:
                self._admit(step)
        return None

    def _free_bit(self) -> int:
        taken = sum(self._bits.values())
        return ~taken & (taken + 1)

    def _admit(self, step: Step) -> None:
        one = step.operation
        if one.kind == "delete" and one.expect is None:
            if step.rev:
                bisect.insort(self._deletions, step.rev)
            else:
                self._deletes += 1
        elif one.kind != "delete" and step.rev in self._asked_for:
            self._open.append(step)
        elif one.expect is None:
            self._writes += 1
        else:
            # Only deletions are of use after what nobody has seen; others lead to the like again.
            unseen = one.kind == "delete" and one.expect not in self._register.known
            for rev in (one.expect, SOMETHING) if unseen else (one.expect,):
                others = self._conditional.setdefault(rev, [])
                if step.rev or all(other.operation.kind != one.kind for other in others):
                    others.append(step)  # else it leads to the same as the other

    def _forget(self, top: int) -> None:
        """Open steps with revisions that have been passed everywhere."""
        if self._open:
            self._open = [step for step in self._open if step.rev and step.rev > top]

    def _advance(self, reached: Reached, bit: int) -> Reached:
        """All that can be reached where this step has had its place, and no further than that."""
        result: Reached = {}
        seen: Reached = {}
        stack: list[Config] = [
            (State(rev, top), mask, writes, deletes)
            for (rev, mask), each in reached.items()
            for top, writes, deletes in each
        ]
        while stack:
            state, mask, writes, deletes = stack.pop()
            if not _keep(seen, state, mask, writes, deletes):
                continue
            self.looked_at += 1
            if self.looked_at > self._limit:
                raise GaveUp
            mask, moves = self._moves(state, mask)
            if mask & bit:
                _keep(result, state, mask & ~bit, writes, deletes)
                continue
            stack += self._with_unseen(state, mask, writes, deletes)
            stack += [(after, mask | move, writes, deletes) for after, move in moves]
        return result

    def _moves(self, state: State, mask: int) -> tuple[int, list[tuple[State, int]]]:
        """Pending steps: those that change nothing have their place at once, others may.

        None may go past a revision that is still to be given by one that must have its place.
        """
        moves = []
        lowest = self._to_come
        for step, bit in self._bits.items():
            if mask & bit:
                continue
            after = self._register.after(state, step, self._since)
            if after == state:
                mask |= bit
                continue
            if step.gives and (lowest is None or step.gives < lowest):
                lowest = step.gives
            if after is not None:
                moves.append((after, bit, step.gives))
        for step in self._open:
            after = self._register.after(state, step, self._since)
            if after is not None:
                moves.append((after, 0, step.rev))
        return mask, [
            (after, bit)
            for after, bit, gives in moves
            if lowest is None or after.top < lowest or gives == lowest
        ]

    def _with_unseen(self, state: State, mask: int, writes: int, deletes: int) -> list[Config]:
        """What writes and deletions lead to of which nobody knows more than that they were sent."""
        if state.rev == ANYTHING:
            return []
        found: list[Config] = []
        if state.rev != SOMETHING and writes < self._writes:
            found.append((State(SOMETHING, state.top + 1), mask, writes + 1, deletes))
        if state.rev != NOTHING and deletes < self._deletes:
            found.append((State(NOTHING, state.top + 1), mask, writes, deletes + 1))
        # The next one leaves more open than those after it.
        place = bisect.bisect_right(self._deletions, state.top)
        if state.rev != NOTHING and place < len(self._deletions):
            found.append((State(NOTHING, self._deletions[place]), mask, writes, deletes))
        for step in self._conditional.get(state.rev, ()):
            after = self._register.after(state, step, self._since)
            if after is not None:
                found.append((after, mask, writes, deletes))
        return found


def _events(steps: Iterable[Step]) -> list[tuple[float, bool, int, Step]]:
    """Begins and ends in the order of time; what happens at the same time overlaps."""
    events = []
    for step in steps:
        events.append((step.begin, False, step.number, step))
        if step.must:
            end = step.operation.end
            assert end is not None
            events.append((end, True, step.number, step))
    return sorted(events, key=lambda event: event[:3])


def _least_to_come(events: Sequence[tuple[float, bool, int, Step]]) -> list[int | None]:
    """For each event the least revision that is given by a step that begins after it."""
    least: list[int | None] = []
    lowest: int | None = None
    for _, is_end, _, step in reversed(events):
        least.append(lowest)
        gives = step.gives
        if not is_end and gives and (lowest is None or gives < lowest):
            lowest = gives
    least.reverse()
    return least


def _keep(reached: Reached, state: State, mask: int, writes: int, deletes: int) -> bool:
    """Add what was reached, unless the same was reached with less; whether it was added."""
    others = reached.setdefault((state.rev, mask), [])
    top = state.top
    if any(a <= top and b <= writes and c <= deletes for a, b, c in others):
        return False
    others[:] = [one for one in others if one[0] < top or one[1] < writes or one[2] < deletes]
    others.append((top, writes, deletes))
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path, help="a history, JSON lines")
    parser.add_argument(
        "--vague-conflicts", action="store_true", help="conflicts name any revision"
    )
    options = parser.parse_args()
    verdicts = check(history.load(options.file), exact_conflicts=not options.vague_conflicts)
    for verdict in verdicts:
        print(verdict)
    return 0 if all(verdict.is_fine for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
