"""Follows the log and applies it: the one place from where records reach a server's tree.

`engine.nats` runs `load` once and `follow` with each connection. Whole groups only are applied; the
committer waits here until what it has published was applied, and learns what became of what it got
no answer for (`Chain`). Keeps the deletions that compaction will ask for. Publishes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import anyio

from moat_kv import errors, waiting
from moat_kv.engine import base, nats_consumer, nats_line, nats_record, nats_stream, nats_subjects
from moat_kv.entry import Record
from moat_kv.path import Path

#: If a newcomer's load stands still for so long, the log's end is looked up anew, in seconds.
STILL_S = 5.0

Progress = Callable[[int, int], None]
"""Told of a newcomer's load: how many records have come, of about how many."""


class Chain:
    """The records of one path while a write to it is under way.

    As long as no record between them is missing, whoever looks knows whether ours is among them.
    """

    __slots__ = ("broken", "last", "mine", "origin", "tick")

    def __init__(self, last: int, origin: str, tick: int) -> None:
        #: The revision of the newest record that was applied.
        self.last = last
        self.origin = origin
        self.tick = tick
        #: Ours, once it has come.
        self.mine: Record | None = None
        #: Records have rolled off before they came.
        self.broken = False

    def note(self, came: nats_record.Delivered) -> None:
        record = came.record
        if record.tick == self.tick and record.origin == self.origin:
            self.mine = record
        elif came.prev != self.last:
            self.broken = True
        self.last = record.rev


class Feed:
    """The applied end of the log."""

    def __init__(self, names: nats_subjects.Names, replica: base.Replica) -> None:
        self._names = names
        self._replica = replica
        #: The last revision that was applied, or passed over.
        self.revision = 0
        self.floor = 0
        #: The newest time that came with a record, seconds since 1970.
        self.at = 0.0
        self.received_bytes = 0
        #: What is under way, by path; the committer puts it here.
        self.chains: dict[Path, Chain] = {}
        #: Per path whose newest record is a deletion: its revision and time.
        self.tombstones: dict[Path, tuple[int, float]] = {}
        #: Paths whose deletion is below the floor and still in the stream, found at a load.
        self.leftovers: dict[Path, int] = {}
        # A group that has come in part.
        self._group: list[nats_record.Delivered] = []
        self._make_waiter = waiting.maker()
        # Who waits for which revision.
        self._waiters: list[tuple[int, waiting.Waiter]] = []
        self.count = 0
        #: Called after records have been applied or passed over.
        self.on_applied: Callable[[], None] = lambda: None
        self._consumer: nats_consumer.Consumer | None = None

    @property
    def clock(self) -> tuple[float, float] | None:
        """See `nats_consumer.Consumer.clock`; of the one that was made last."""
        return None if self._consumer is None else self._consumer.clock

    def resume(
        self, revision: int, floor: int, at: float, tombstones: Mapping[Path, tuple[int, float]]
    ) -> None:
        """Begin with what another run had applied."""
        self.revision, self.floor, self.at = revision, floor, at
        self.tombstones = dict(tombstones)

    def reset(self) -> None:
        """What was applied is void; `load` begins with nothing."""
        self.resume(0, 0, self.at, {})
        self.leftovers, self.chains = {}, {}

    async def load(
        self, connection: nats_line.Connection, progress: Progress | None = None
    ) -> None:
        """Apply the newest record of every path, or, if that broke off before, what follows.

        Raises nats_line.NoAnswer, nats_line.Refused.
        """
        self._group = []
        floor, _ = await nats_stream.floor(connection, self._names)
        self._raise_floor(floor)
        end = await nats_stream.end(connection, self._names)
        if not end:
            return
        consumer = self._consumer = nats_consumer.Consumer(connection, self._names, self._take)
        try:
            total = await consumer.start(self._names.followed, self.revision or None)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._report, total, progress)
                tasks.start_soon(_must_live, consumer)
                while not await self.reach(end, STILL_S):
                    end = await nats_stream.end(connection, self._names)
                tasks.cancel_scope.cancel()
        except* nats_line.NoAnswer as group:
            raise nats_line.NoAnswer(str(group.exceptions[0])) from group
        finally:
            with anyio.CancelScope(shield=True):
                await consumer.stop()
        if progress is not None:
            progress(self.count, self.count)

    async def _report(self, total: int, progress: Progress | None) -> None:
        while progress is not None:
            progress(self.count, max(total, self.count))
            await anyio.sleep(0.1)

    async def follow(self, connection: nats_line.Connection) -> None:
        """Apply what comes, until cancelled. Raises nats_line.NoAnswer, errors.StorageDamaged."""
        while True:
            self._group = []
            consumer = self._consumer = nats_consumer.Consumer(connection, self._names, self._take)
            try:
                await consumer.start(self._names.followed, self.revision)
                await consumer.until_over()
            except nats_line.Refused as refused:
                raise nats_line.NoAnswer(str(refused)) from refused
            finally:
                with anyio.CancelScope(shield=True):
                    await consumer.stop()

    async def reach(self, rev: int, timeout_s: float | None = None) -> bool:
        """Wait until a revision was applied or passed; False if it was not in time."""
        if self.revision >= rev:
            return True
        waiter = self._make_waiter()
        self._waiters.append((rev, waiter))
        timer = None
        if timeout_s is not None:
            timer = asyncio.get_running_loop().call_later(timeout_s, waiter.set)
        try:
            await waiter.wait()
        finally:
            if timer is not None:
                timer.cancel()
            self._waiters = [each for each in self._waiters if each[1] is not waiter]
        return self.revision >= rev

    # Applying -----------------------------------------------------------------------------------

    def _take(self, items: Sequence[nats_consumer.Item], _remaining: int) -> None:
        ready: list[nats_record.Delivered] = []
        for item in items:
            rev = nats_consumer.rev_of(item)
            if self._group and rev > self._group[0].group_end:
                # Its end has rolled off.
                ready += self._group
                self._group = []
            if isinstance(item, nats_record.Delivered):
                self.count += 1
                if item.size == 1:
                    ready.append(item)
                else:
                    self._group.append(item)
                    if rev < item.group_end:
                        continue
                    ready += self._group
                    self._group = []
            elif isinstance(item, nats_consumer.Floor):
                self._apply(ready)
                ready = []
                self._raise_floor(item.floor)
            if not self._group:
                self.revision = rev
        self._apply(ready)
        for rev, waiter in self._waiters:
            if rev <= self.revision:
                waiter.set()
        self.on_applied()

    def _apply(self, ready: Sequence[nats_record.Delivered]) -> None:
        records = []
        for came in ready:
            record = came.record
            path, value = record.path, record.value
            self.received_bytes += len(value or b"")
            if value is None:
                if record.rev <= self.floor:
                    self.leftovers[path] = record.rev
                    continue
                self.tombstones[path] = (record.rev, record.at)
            else:
                self.tombstones.pop(path, None)
            if self.leftovers:
                self.leftovers.pop(path, None)
            if self.chains and (chain := self.chains.get(path)) is not None:
                chain.note(came)
            records.append(record)
        if records:
            self.at = max(self.at, records[-1].at)
            self._replica.apply(records)

    def _raise_floor(self, floor: int) -> None:
        if floor <= self.floor:
            return
        # What the former floor left over has been removed since, or will be found out.
        self.leftovers = {path: rev for path, rev in self.leftovers.items() if rev > self.floor}
        self.floor = floor
        for path in [path for path, (rev, _) in self.tombstones.items() if rev <= floor]:
            self.leftovers[path] = self.tombstones.pop(path)[0]
        self._replica.compacted(floor)


async def _must_live(consumer: nats_consumer.Consumer) -> None:
    await consumer.until_over()
    raise nats_line.NoAnswer("the load broke off")


def same_log(feed: Feed, facts: nats_stream.Facts, floor: int, place: str, epoch: str) -> None:
    """Whether what is there now goes on from what was applied. Raises StorageDamaged.

    The stream may have lost its end (all nodes lost power, without `sync_interval: always`), be
    another one, or have forgotten deletions that this server has not seen.
    """
    if facts.epoch != epoch:
        raise errors.StorageDamaged(place, f"it is another log (epoch {facts.epoch}, not {epoch})")
    if facts.revision < feed.revision:
        raise errors.StorageDamaged(
            place,
            f"it ends at revision {facts.revision}, and was at {feed.revision} before",
            hint="set `sync_interval: always` in NATS; a start of this server takes what is left",
        )
    if floor > feed.revision:
        raise errors.StorageDamaged(
            place,
            f"deletions up to revision {floor} are forgotten, this server knows {feed.revision}",
            hint="a start of this server takes the tree anew",
        )
