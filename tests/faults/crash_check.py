"""What the fault commands have in common: writers that note what was answered, and the check.

Each writer sets its own paths to numbers that rise, and pairs of paths in atomic groups. After a
crash, a path must hold the last number that was answered, or a later one that was asked for; both
paths of a pair must hold the same.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

from moat_kv import errors
from moat_kv.engine import base, sqlite
from moat_kv.entry import Record, Write
from moat_kv.path import Path
from moat_kv.testing import engine_probe

#: How many writers there are, each with one group in flight.
WRITERS = 24


def number_of(record: Record | None) -> int:
    """The number that an entry holds; 0 if there is none."""
    return int(record.value) if record is not None and record.value is not None else 0


class Writers:
    """Writers that go on, each when its group is answered, until `stopped` is set.

    `persist`: also after a group that the engine refused; otherwise that stops all.
    `answered` is called in the event loop with a writer's index and number when a group is
    answered with success, after it is noted in `last`.
    """

    def __init__(
        self,
        engine: base.Engine,
        last: Sequence[int],
        answered: Callable[[int, int], None] = lambda index, number: None,
        *,
        persist: bool = False,
    ) -> None:
        self._engine = engine
        #: The last number that was answered, and asked for, by writer.
        self.last = list(last)
        self.asked = list(last)
        self.count = 0
        self.refused = 0
        self.stopped = False
        self._persist = persist
        self._answered = answered

    def start(self) -> None:
        for index in range(len(self.last)):
            self._write(index)

    def _write(self, index: int) -> None:
        number = self.asked[index] = self.asked[index] + 1
        writes = [
            Write(path, b"%d" % number, origin="crash:1", tick=number) for path in paths(index)
        ]

        def done(outcome: base.Outcome) -> None:
            if isinstance(outcome, errors.MoatKvError):
                self.refused += 1
                self.stopped = self.stopped or not self._persist
            else:
                self.last[index] = number
                self.count += 1
                self._answered(index, number)
            if not self.stopped:
                self._write(index)

        self._engine.submit(writes, done)


def paths(index: int) -> list[Path]:
    """What a writer writes: every third one a pair."""
    mine = [Path("crash", "w", index)]
    return [*mine, Path("crash", "twin", index)] if index % 3 == 0 else mine


async def check(
    file: pathlib.Path,
    last: Sequence[int],
    asked: Sequence[int] | None = None,
    *,
    engine: base.Engine | None = None,
) -> tuple[list[str], list[int]]:
    """Open a log after a crash; a line for each fault, and the numbers that are there by writer."""
    replica = engine_probe.DictReplica()
    lost = []
    numbers = []
    async with (engine or sqlite.SqliteEngine(file)).running(replica):
        for index, number in enumerate(last):
            there = [number_of(replica.head(path)) for path in paths(index)]
            numbers.append(there[0])
            if there[0] < number:
                lost.append(f"writer {index}: {number} was answered, {there[0]} is there")
            if asked is not None and there[0] > asked[index]:
                lost.append(f"writer {index}: {there[0]} was never asked for")
            if len(set(there)) > 1:
                lost.append(f"writer {index}: half a group, {there}")
    return lost, numbers
