"""What an engine is tested with: a replica that checks what it is told, and a writer that waits.

Used by `moat_kv.testing.engine_suite`, and by the tests of single engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import anyio

from moat_kv import errors
from moat_kv.engine import base
from moat_kv.entry import Record, Write
from moat_kv.path import Path

#: The origin of all records that a `Writer` makes.
ORIGIN = "suite:1"


class OpenEngine(Protocol):
    """The fixture that an engine's author gives.

    `history` is how many records of a path must be kept, `tombstone_s` the age in seconds at which
    `compact` drops a deletion (0: at once).
    """

    def __call__(self, *, history: int = 10, tombstone_s: float = 3600.0) -> base.Engine: ...


class DictReplica:
    """The least that an engine can be given, checking what it is told."""

    def __init__(self) -> None:
        self.heads: dict[Path, Record] = {}
        #: What is shown over them.
        self.covers: dict[Path, Record] = {}
        #: Every call of `apply`.
        self.applied: list[list[Record]] = []
        self.floor = 0
        self.messages: list[tuple[Path, bytes]] = []
        #: Set by each message; whoever waits puts a new one here.
        self.heard = anyio.Event()
        self._last = 0

    def head(self, path: Path) -> Record | None:
        return self.heads.get(path)

    def apply(self, records: Sequence[Record]) -> None:
        self.applied.append(list(records))
        for record in records:
            assert record.rev > self._last, "revisions must rise"
            self._last = record.rev
            self.heads[record.path] = record

    def compacted(self, floor: int) -> None:
        assert floor >= self.floor, "the floor must not fall"
        self.floor = floor
        for record in list(self.heads.values()):
            if record.value is None and record.rev <= floor:
                del self.heads[record.path]

    # For an engine that may be out of reach (`engine.outbox.Canvas`).

    def cover(self, record: Record) -> None:
        self.covers[record.path] = record

    def uncover(self, path: Path) -> None:
        self.covers.pop(path, None)

    def restart(self) -> None:
        self.heads.clear()
        self._last = 0

    def complete(self) -> None:
        """Nothing was shown meanwhile."""

    def message(self, topic: Path, data: bytes) -> None:
        self.messages.append((topic, data))
        self.heard.set()

    @property
    def values(self) -> dict[Path, bytes]:
        return {path: r.value for path, r in self.heads.items() if r.value is not None}


class Writer:
    """Submits writes to an engine and waits for what becomes of them."""

    def __init__(self, engine: base.Engine) -> None:
        self._engine = engine
        self._tick = 0

    def make(self, path: Path, value: bytes | None, **options: Any) -> Write:
        self._tick += 1
        return Write(path, value, origin=ORIGIN, tick=self._tick, **options)

    async def group(self, *writes: Write) -> base.Outcome:
        """What becomes of an atomic group; 30 s at most."""
        outcomes: list[base.Outcome] = []
        answered = anyio.Event()

        def done(outcome: base.Outcome) -> None:
            outcomes.append(outcome)
            answered.set()

        self._engine.submit(writes, done)
        with anyio.fail_after(30):
            await answered.wait()
        assert len(outcomes) == 1, "a group must be answered once"
        return outcomes[0]

    async def set(self, path: Path, value: bytes | None, **options: Any) -> Record:
        """The record of a single write. Raises what the engine answers."""
        outcome = await self.group(self.make(path, value, **options))
        if isinstance(outcome, errors.MoatKvError):
            raise outcome
        (record,) = outcome
        return record


class Answers:
    """Collects the outcomes of many groups, in the order in which they are answered."""

    def __init__(self, expected: int) -> None:
        self.outcomes: list[tuple[int, base.Outcome]] = []
        self._expected = expected
        self._complete = anyio.Event()

    def done(self, number: int) -> base.Done:
        def done(outcome: base.Outcome) -> None:
            self.outcomes.append((number, outcome))
            if len(self.outcomes) == self._expected:
                self._complete.set()

        return done

    async def wait(self) -> None:
        with anyio.fail_after(50):
            await self._complete.wait()


async def all_records(engine: base.Engine, since: int = 0) -> list[Record]:
    """Everything that `Engine.records` yields."""
    return [record async for records in engine.records(since) for record in records]
