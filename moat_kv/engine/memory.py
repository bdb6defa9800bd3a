"""The engine for tests: a log in memory, gone with its process.

A server's tests start one where the storage is not what they test. It keeps to `engine.base` in
everything but durability: groups are judged and applied by a task of its own, never within
`submit`, so that nothing can come to rely on an answer that is there at once. The records stay as
long as the object does: serving again with a new replica is what a restart looks like.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

from moat_kv import errors
from moat_kv.engine import base, judge
from moat_kv.entry import Record, Write
from moat_kv.path import Path

#: So many records go to the replica, or to a reader, before the event loop gets its turn.
SLICE = 1_000


class MemoryEngine(base.Engine):
    """`base.Engine` without a file.

    `history`: how many records of a path are kept, at least 1. `tombstone_s`: seconds after which
    a deletion may be forgotten. `clock` gives seconds since 1970.

    Setting `trouble` makes every group fail with StorageFailed until it is None again, as a full
    disk would.
    """

    def __init__(
        self,
        *,
        history: int = 10,
        tombstone_s: float = 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if history < 1:
            raise errors.BadConfig("history", "at least 1")
        self.epoch = secrets.token_hex(8)
        self.revision = 0
        self.floor = 0
        self.trouble = None
        self._history = history
        self._tombstone_s = tombstone_s
        self._clock = clock
        self._at = 0.0
        #: Per path its kept records, oldest first; the last one is the path's head.
        self._kept: dict[Path, deque[Record]] = {}
        self._waiting: deque[tuple[Sequence[Write], base.Done]] = deque()
        self._wake: anyio.Event
        self._replica: base.Replica | None = None
        self._closing = False

    @asynccontextmanager
    async def running(self, replica: base.Replica) -> AsyncIterator[None]:
        """See `base.Engine.running`; nothing is raised."""
        if self._replica is not None:
            raise RuntimeError("this engine is running already")
        self._replica = replica
        self._closing = False
        self._wake = anyio.Event()
        try:
            await self._load(replica)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._serve, replica)
                try:
                    yield
                finally:
                    # The task takes what was submitted before it sees this, and ends.
                    self._closing = True
                    self._wake.set()
        finally:
            self._replica = None

    async def _load(self, replica: base.Replica) -> None:
        if self.floor:
            replica.compacted(self.floor)
        heads = sorted(records[-1] for records in self._kept.values())
        for start in range(0, len(heads), SLICE):
            replica.apply(heads[start : start + SLICE])
            await anyio.lowlevel.checkpoint()

    def submit(self, writes: Sequence[Write], done: base.Done) -> None:
        if self._replica is None or self._closing:
            raise RuntimeError("this engine is not running")
        self._waiting.append((writes, done))
        self._wake.set()

    async def _serve(self, replica: base.Replica) -> None:
        with anyio.CancelScope(shield=True):
            while self._waiting or not self._closing:
                await self._wake.wait()
                self._wake = anyio.Event()
                while self._waiting:
                    writes, done = self._waiting.popleft()
                    done(self._commit(replica, writes))

    def _commit(self, replica: base.Replica, writes: Sequence[Write]) -> base.Outcome:
        if self.trouble is not None:
            return errors.StorageFailed("memory", self.trouble)
        self._at = max(self._at, self._clock())
        judged = judge.Judge(replica, self.revision)
        outcome = judged.admit(writes, self._at)
        if judged.records:
            for record in judged.records:
                kept = self._kept.get(record.path)
                if kept is None:
                    kept = self._kept[record.path] = deque(maxlen=self._history)
                kept.append(record)
            self.revision = judged.revision
            replica.apply(judged.records)
        return outcome

    async def history(self, path: Path, *, limit: int, before: int | None = None) -> list[Record]:
        await anyio.lowlevel.checkpoint()
        newest_first = reversed(self._kept.get(path, ()))
        wanted = (record for record in newest_first if before is None or record.rev < before)
        return list(itertools.islice(wanted, limit))

    async def records(self, since: int) -> AsyncIterator[Sequence[Record]]:
        found = sorted(r for kept in self._kept.values() for r in kept if r.rev > since)
        for start in range(0, len(found), SLICE):
            await anyio.lowlevel.checkpoint()
            yield found[start : start + SLICE]

    async def compact(self) -> int:
        await anyio.lowlevel.checkpoint()
        oldest = self._clock() - self._tombstone_s
        gone = [
            (kept[-1].rev, path)
            for path, kept in self._kept.items()
            if kept[-1].value is None and kept[-1].at < oldest
        ]
        for rev, path in gone:
            del self._kept[path]
            self.floor = max(self.floor, rev)
        if gone and self._replica is not None:
            self._replica.compacted(self.floor)
        return self.floor

    def send(self, topic: Path, data: bytes) -> None:
        if self._replica is not None:
            self._replica.message(topic, data)

    def describe(self) -> dict[str, Any]:
        """`kind`, `place`, `records` (how many are kept), `size_bytes` (of their values)."""
        records = [record for kept in self._kept.values() for record in kept]
        return {
            "kind": "memory",
            "place": "memory",
            "records": len(records),
            "size_bytes": sum(len(record.value or b"") for record in records),
        }
