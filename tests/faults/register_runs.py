"""Histories of a register that really is one, and ways to spoil them: for the checker's own tests.

`run` plays clients whose requests take effect at some moment between being sent and being answered,
or after they were given up, or never. Each function of `SPOILERS` changes one answer so that no
register could have given it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.faults.history import Kind, Operation, Outcome

#: Revisions are so far apart, so that a spoiler can put another one between two of them.
STEP = 10
KINDS: Sequence[Kind] = ("read", "write", "cas", "delete")


@dataclass(kw_only=True)
class _Request:
    operation: Operation
    is_done: bool = False
    """It has taken effect, and `operation` has its answer."""
    is_given_up: bool = False


class _Run:
    def __init__(self, chance: random.Random, clients: int, key: str, open_share: float) -> None:
        self._chance = chance
        self._key = key
        self._open_share = open_share
        self._clock = 0
        self._number = 0
        #: What is there in the end.
        self.value: int | None = None
        self._rev = 0
        self._top = 0
        self._idle = [f"c{index}" for index in range(clients)]
        # What each client believes the revision to be.
        self._known = dict.fromkeys(self._idle, 0)
        self._running: list[_Request] = []
        self.ended: list[Operation] = []

    def play(self, count: int) -> list[Operation]:
        while len(self.ended) < count:
            moves: list[Callable[[], None]] = []
            if self._idle and self._number < count:
                moves.append(self._begin)
            if any(not one.is_done for one in self._running):
                moves.append(self._take_effect)
            if any(not one.is_given_up for one in self._running):
                moves.append(self._end)
            self._chance.choice(moves)()
        return self.ended

    def _now(self) -> float:
        self._clock += 1
        return float(self._clock)

    def _begin(self) -> None:
        client = self._idle.pop(self._chance.randrange(len(self._idle)))
        kind = self._chance.choices(KINDS, [4, 2, 4, 1])[0]
        self._number += 1
        conditional = kind == "cas" or (kind == "delete" and self._chance.random() < 0.3)
        operation = Operation(
            number=self._number,
            client=client,
            key=self._key,
            kind=kind,
            begin=self._now(),
            value=self._number if kind in ("write", "cas") else None,
            expect=self._known[client] if conditional else None,
            strict=True,
        )
        self._running.append(_Request(operation=operation))

    def _take_effect(self) -> None:
        request = self._chance.choice([one for one in self._running if not one.is_done])
        request.is_done = True
        request.operation = self._answered(request.operation)
        if request.is_given_up:
            self._running.remove(request)

    def _answered(self, one: Operation) -> Operation:
        if one.kind == "read":
            return dataclasses.replace(one, outcome="ok", value=self.value, rev=self._rev)
        if one.expect is not None and one.expect != self._rev:
            return dataclasses.replace(one, outcome="failed", error="Conflict", have=self._rev)
        if one.kind == "delete" and not self._rev:
            return dataclasses.replace(one, outcome="ok", rev=self._top, deleted=False)
        self._top += STEP
        if one.kind == "delete":
            self.value, self._rev = None, 0
            return dataclasses.replace(one, outcome="ok", rev=self._top, deleted=True)
        self.value, self._rev = one.value if isinstance(one.value, int) else None, self._top
        return dataclasses.replace(one, outcome="ok", rev=self._top)

    def _end(self) -> None:
        request = self._chance.choice([one for one in self._running if not one.is_given_up])
        one = request.operation
        if request.is_done and self._chance.random() >= self._open_share:
            self._running.remove(request)
            self._known[one.client] = one.rev if one.rev is not None else one.have or 0
            self._note(one, one.outcome)
        elif self._chance.random() < self._open_share:
            if request.is_done or self._chance.random() < 0.5:
                self._running.remove(request)  # its answer is lost, or it never happens
            request.is_given_up = True
            bare = {"rev": None, "deleted": None, "have": None, "error": ""}
            if one.kind == "read":
                bare["value"] = None
            outcome: Outcome = self._chance.choice(["unknown", "pending"])
            self._note(dataclasses.replace(one, **bare), outcome)  # type: ignore[arg-type]

    def _note(self, one: Operation, outcome: Outcome) -> None:
        self._idle.append(one.client)
        self.ended.append(dataclasses.replace(one, end=self._now(), outcome=outcome))


def run(
    chance: random.Random,
    *,
    clients: int = 8,
    count: int = 100,
    key: str = "k",
    open_share: float = 0.05,
) -> list[Operation]:
    """The operations of clients of one register, in the order in which they ended."""
    return _Run(chance, clients, key, open_share).play(count)


def run_to_end(
    chance: random.Random, *, count: int, open_share: float
) -> tuple[list[Operation], int | None]:
    """The same, and what is there in the end."""
    run_ = _Run(chance, 8, "k", open_share)
    return run_.play(count), run_.value


Spoiler = Callable[[Sequence[Operation], random.Random], list[Operation] | None]


def _before(one: Operation, other: Operation) -> bool:
    return one.end is not None and one.end < other.begin


def _given(operations: Sequence[Operation]) -> list[Operation]:
    """What has given a revision and was answered."""
    return [
        one
        for one in operations
        if one.outcome == "ok" and one.kind != "read" and one.deleted is not False
    ]


def _changed(operations: Sequence[Operation], one: Operation, **fields: object) -> list[Operation]:
    other = dataclasses.replace(one, **fields)  # type: ignore[arg-type]
    return [other if each is one else each for each in operations]


def stale_read(operations: Sequence[Operation], chance: random.Random) -> list[Operation] | None:
    """A read sees what was replaced before it was sent."""
    given = _given(operations)
    found = [
        (read, old)
        for read in operations
        if read.kind == "read" and read.outcome == "ok"
        for new in given
        if _before(new, read)
        for old in given
        if old.kind != "delete" and (old.rev or 0) < (new.rev or 0)
    ]
    if not found:
        return None
    read, old = chance.choice(found)
    return _changed(operations, read, value=old.value, rev=old.rev)


def lost_update(operations: Sequence[Operation], chance: random.Random) -> list[Operation] | None:
    """A compare-and-set succeeds on a revision that was replaced before it was sent."""
    given = _given(operations)
    found = [
        (cas, old)
        for cas in given
        if cas.kind == "cas"
        for new in given
        if _before(new, cas)
        for old in given
        if old.kind != "delete" and (old.rev or 0) < (new.rev or 0)
    ]
    if not found:
        return None
    cas, old = chance.choice(found)
    return _changed(operations, cas, expect=old.rev)


def double_success(
    operations: Sequence[Operation], chance: random.Random
) -> list[Operation] | None:
    """Two compare-and-sets replace the same revision."""
    found = [
        (loser, winner)
        for winner in _given(operations)
        if winner.expect
        for loser in operations
        if loser.kind == "cas" and loser.outcome == "failed" and loser.expect == winner.expect
    ]
    if not found:
        return None
    loser, winner = chance.choice(found)
    rev = (winner.rev or 0) + chance.choice([-1, 1])
    return _changed(operations, loser, outcome="ok", rev=rev, error="", have=None)


def never_written(operations: Sequence[Operation], chance: random.Random) -> list[Operation] | None:
    """A read sees a value that nobody wrote."""
    reads = [one for one in operations if one.kind == "read" and one.outcome == "ok"]
    if not reads:
        return None
    read = chance.choice(reads)
    return _changed(operations, read, value=-1, rev=(read.rev or 0) + 1)


def from_the_future(
    operations: Sequence[Operation], chance: random.Random
) -> list[Operation] | None:
    """A read sees what was sent only after the read had been answered."""
    found = [
        (read, new)
        for read in operations
        if read.kind == "read" and read.outcome == "ok"
        for new in _given(operations)
        if new.kind != "delete" and _before(read, new)
    ]
    if not found:
        return None
    read, new = chance.choice(found)
    return _changed(operations, read, value=new.value, rev=new.rev)


SPOILERS: dict[str, Spoiler] = {
    "stale read": stale_read,
    "lost update": lost_update,
    "double success": double_success,
    "never written": never_written,
    "from the future": from_the_future,
}
