"""Moving a whole tree from one engine into another: of one server into a network, and back.

Used by `moat kv log move`, with two engines that no server has open. Entries keep their values,
times, ends and records' ids; they get new revisions, in the old order, and the new log has an epoch
of its own, so nobody takes a revision of the one for one of the other. Earlier versions and
deletions stay behind, and so does what belongs to sessions, which end with their servers.

An interrupted move is gone on with by doing it again: what is there already has the same ids, or
those of former records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import anyio.lowlevel

from moat_kv import errors
from moat_kv.engine import base
from moat_kv.entry import SYSTEM, LateWrite, Record
from moat_kv.path import Path

#: So many writes are under way at most, and so many bytes of values.
AT_ONCE = 2_000
AT_ONCE_BYTES = 16 * 1024 * 1024

#: So many former records of an entry are looked at for one that was moved before.
HISTORY = 1_000

Tell = Callable[[int, int], None]
"""Told how many entries are there, and of how many."""


class Held(base.Replica):
    """The newest record of each path of a log, and the messages that came by."""

    def __init__(self) -> None:
        self.heads: dict[Path, Record] = {}
        #: Called for each message.
        self.on_message: Callable[[Path, bytes], None] = lambda topic, data: None

    def head(self, path: Path) -> Record | None:
        return self.heads.get(path)

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self.heads[record.path] = record

    def compacted(self, floor: int) -> None:
        """A deletion that is remembered for longer does no harm here."""

    def message(self, topic: Path, data: bytes) -> None:
        self.on_message(topic, data)

    def live(self) -> list[Record]:
        """What is to be moved, in the order of revisions."""
        found = [record for record in self.heads.values() if record.value is not None]
        return sorted(filter(_lasts, found), key=lambda record: record.rev)

    def left_out(self) -> int:
        """How many entries belong to sessions."""
        found = [record for record in self.heads.values() if record.value is not None]
        return sum(1 for record in found if not _lasts(record) and not _is_system(record.path))


def _lasts(record: Record) -> bool:
    return record.session is None and not _is_system(record.path)


def _is_system(path: Path) -> bool:
    # Sessions and the like; all that there is belongs to servers that run.
    return bool(path) and path[0] is SYSTEM


async def has_others(source: Held, log: base.Engine, target: Held) -> bool:
    """Whether the target has live entries that never were the source's, which is `log`'s.

    What an interrupted move left there is the source's, also where that has changed since.
    """
    for record in target.live():
        there = source.heads.get(record.path)
        if there is None:
            return True
        if there.id != record.id:
            kept = await log.history(record.path, limit=HISTORY)
            if all(each.id != record.id for each in kept):
                return True
    return False


async def move(
    source: Held, target: Held, engine: base.Engine, *, tell: Tell = lambda done, total: None
) -> int:
    """Write into `target`, which is `engine`'s, what `source` has; how many entries it has then.

    What changes in the source meanwhile is moved too. Raises what refuses a write: Conflict, if
    others write to the target at the same time, Detached, Unknown, StorageFailed.
    """
    while True:
        writes = _missing(source, target)
        if not writes:
            return len(source.live())
        await _Mover(engine, tell).write(writes)


def _missing(source: Held, target: Held) -> list[LateWrite]:
    writes = []
    for record in source.live():
        there = target.heads.get(record.path)
        if there is not None and (there.id, there.value) == (record.id, record.value):
            continue
        after = 0 if there is None else there.rev
        writes.append(_late(record, record.value, after))
    for there in target.live():
        record_ = source.heads.get(there.path)
        if record_ is None or record_.value is None:  # deleted meanwhile
            writes.append(_late(record_ or there, None, there.rev))
    return writes


def _late(record: Record, value: bytes | None, after: int) -> LateWrite:
    write = LateWrite(
        record.path, value, origin=record.origin, tick=record.tick, at=record.at, after=after
    )
    write.expires_at = record.expires_at if value is not None else None
    return write


class _Mover:
    """Some writes, many of them under way at a time."""

    def __init__(self, engine: base.Engine, tell: Tell) -> None:
        self._engine = engine
        self._tell = tell
        self._open = 0
        self._open_bytes = 0
        self._done = 0
        self._error: errors.MoatKvError | None = None
        self._changed = anyio.Event()

    async def write(self, writes: Sequence[LateWrite]) -> None:
        """Submit all in order. Raises the first error, when nothing is under way any more."""
        for write in writes:
            while self._open >= AT_ONCE or self._open_bytes > AT_ONCE_BYTES:
                await self._wait(len(writes))
            if self._error is not None:
                break
            self._submit(write)
        while self._open:
            await self._wait(len(writes))
        if self._error is not None:
            raise self._error

    def _submit(self, write: LateWrite) -> None:
        size_bytes = len(write.value or b"")
        self._open += 1
        self._open_bytes += size_bytes

        def done(outcome: base.Outcome) -> None:
            self._open -= 1
            self._open_bytes -= size_bytes
            if isinstance(outcome, errors.MoatKvError):
                self._error = self._error or outcome
            else:
                self._done += 1
            self._changed.set()

        self._engine.submit((write,), done)

    async def _wait(self, total: int) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()
        self._tell(self._done, total)
