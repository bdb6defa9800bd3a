"""Follows the log and applies it: the one place from where records reach a server's tree.

`engine.nats` runs `load` once and `follow` with each connection. Whole groups only are applied; the
committer waits here until what it has published was applied, and learns what became of what it got
no answer for (`Chain`). Keeps the deletions that compaction will ask for. Publishes nothing.

Records come from a consumer. While there is none (NATS's metadata has no leader, which takes it up
to ten seconds after a node froze), while it is silent, or when somebody waits for what it does not
bring, they are read from any node's copy of the stream (`nats_direct`). Each of the two goes up in
the stream without gaps from what had come when it began, so what has come already is passed over,
and nothing is missing of what is taken.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import anyio

from moat_kv import errors, waiting
from moat_kv.engine import (
    age,
    base,
    nats_clock,
    nats_connection,
    nats_consumer,
    nats_direct,
    nats_record,
    nats_stream,
    nats_subjects,
)
from moat_kv.entry import Record
from moat_kv.path import Path

_log = logging.getLogger(__name__)

#: Who waits for a revision for so long has it read from a copy of the stream, in seconds.
LATE_S = 0.15
#: So does a consumer that has not been heard for so long, in seconds; it says every second that it
#: lives.
QUIET_S = 2.0
#: Pauses between two looks into a copy that had nothing new: while somebody waits, and else.
PAUSE_S, IDLE_PAUSE_S = 0.05, 0.25
#: After a consumer that could not be made, the next is tried, in seconds.
AGAIN_S = 1.0
#: Where neither a consumer can be had nor a copy answers for so long, nobody has the stream.
USELESS_S = 10.0
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
        #: The newest record that was applied: by it can be told whether the log is still the same.
        self.newest: Record | None = None
        #: The newest time that came with a record, seconds since 1970.
        self.at = 0.0
        self.received_bytes = 0
        #: NATS's time, as far as it is known from what has come.
        self.clock = nats_clock.Clock()
        #: What is under way, by path; the committer puts it here.
        self.chains: dict[Path, Chain] = {}
        #: Per path whose newest record is a deletion: its revision and time.
        self.tombstones: dict[Path, tuple[int, float]] = {}
        #: Paths whose deletion is below the floor and still in the stream, found at a load.
        self.leftovers: dict[Path, int] = {}
        # The newest revision that has come; above `revision` while a group has come in part.
        self._came = 0
        self._group: list[nats_record.Delivered] = []
        self._make_waiter = waiting.maker()
        # Who waits for which revision, and since when (of the monotonic clock, in seconds).
        self._waiters: list[tuple[int, waiting.Waiter, float]] = []
        # Somebody may have waited for too long.
        self._late = anyio.Event()
        # When something came last (of the monotonic clock, in seconds).
        self._moved_at = 0.0
        self.count = 0
        #: Called after records have been applied or passed over.
        self.on_applied: Callable[[], None] = lambda: None
        self._consumer: nats_consumer.Consumer | None = None
        # It was made, and has not ended yet.
        self._is_fed = False
        # How many records it had to bring when it was made; and has, and when it said so last.
        self._total = self._remaining = 0
        self._fed_at = 0.0

    @property
    def stands_s(self) -> float:
        """For how long nothing at all has come though somebody waits for it, in seconds."""
        if not self._waiters:
            return 0.0
        since = min(since for _, _, since in self._waiters)
        return time.monotonic() - max(since, self._moved_at)

    def resume(
        self, revision: int, floor: int, at: float, tombstones: Mapping[Path, tuple[int, float]]
    ) -> None:
        """Begin with what another run had applied."""
        self.revision, self.floor, self.at = revision, floor, at
        self._came = revision
        self.tombstones = dict(tombstones)

    def reset(self) -> None:
        """What was applied is void; `load` begins with nothing."""
        self.resume(0, 0, self.at, {})
        self.leftovers, self.chains, self.newest = {}, {}, None
        self.clock.forget_revisions()

    async def load(
        self, connection: nats_connection.Connection, progress: Progress | None = None
    ) -> None:
        """Apply the newest record of every path, or, if that broke off before, what follows.

        Raises nats_connection.NoAnswer, Refused.
        """
        floor, _ = await nats_stream.floor(connection, self._names)
        self.know_floor(floor)
        end = await nats_stream.end(connection, self._names)
        if not end:
            return
        self._total = 0
        enabled = gc.isenabled()
        gc.disable()  # a tree that grows makes no garbage
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._report, progress)
                tasks.start_soon(self.follow, connection)
                while not await self.reach(end, STILL_S):
                    end = await nats_stream.end(connection, self._names)
                tasks.cancel_scope.cancel()
        except* (nats_connection.NoAnswer, nats_connection.Refused) as group:
            raise nats_connection.NoAnswer(str(group.exceptions[0])) from group
        finally:
            if enabled:
                gc.enable()
        if progress is not None:
            progress(self.count, self.count)

    async def _report(self, progress: Progress | None) -> None:
        while progress is not None:
            if self._is_fed:
                progress(self.count, max(self._total, self.count))
            await anyio.sleep(0.1)

    async def follow(self, connection: nats_connection.Connection) -> None:
        """Apply what comes, until cancelled. Raises nats_connection.NoAnswer.

        Who knows nothing yet begins with the newest record of every path.
        """
        self._group, self._came = [], self.revision
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._consume, connection)
                tasks.start_soon(self._fill_in, connection)
        except* nats_connection.NoAnswer as group:
            raise nats_connection.NoAnswer(str(group.exceptions[0])) from group

    async def _consume(self, connection: nats_connection.Connection) -> None:
        """Have a consumer at all times when one can be had."""
        while True:
            consumer = self._consumer = nats_consumer.Consumer(connection, self._names, self._fed)
            is_newcomer = not self._came
            try:
                self._total = await consumer.start(self._names.followed, self._came or None)
                self._is_fed = True
                await consumer.until_over()
            except nats_connection.Refused as refused:
                if is_newcomer or refused.number == nats_stream.STREAM_NOT_FOUND:
                    raise nats_connection.NoAnswer(str(refused)) from refused
                _log.debug("NATS: no consumer: %s", refused)
            except nats_connection.NoAnswer as exc:
                if is_newcomer or connection.lost.is_set():
                    raise
                _log.debug("NATS: no consumer: %s", exc)
            finally:
                self._is_fed = False
                await consumer.stop()
            await anyio.sleep(AGAIN_S)

    async def _fill_in(self, connection: nats_connection.Connection) -> None:
        """Read what the consumer does not bring."""
        reader = nats_direct.Reader(connection, self._names)
        await reader.open()
        answered_at = time.monotonic()
        try:
            while True:
                if not self._lacks():
                    self._late = anyio.Event()
                    with anyio.move_on_after(QUIET_S / 2):
                        await self._late.wait()
                        await anyio.sleep(PAUSE_S)
                    answered_at = time.monotonic()
                    continue
                try:
                    items = await reader.after(self._came, self._names.all)
                    answered_at = time.monotonic()
                except nats_connection.NoAnswer as exc:
                    if connection.lost.is_set() or time.monotonic() - answered_at > USELESS_S:
                        raise
                    _log.debug("NATS: reading without a consumer: %s", exc)
                    items = []
                self._take(items)
                if not items:
                    await anyio.sleep(PAUSE_S if self._waiters else IDLE_PAUSE_S)
        finally:
            await reader.close()

    def _lacks(self) -> bool:
        """Whether there is reason to read what no consumer brings."""
        if not self._came:
            return False  # a newcomer: the whole log is much more than the newest records
        if self._consumer is None or not self._is_fed or self._consumer.silent_s > QUIET_S:
            return True
        now = time.monotonic()
        if self._remaining and now - self._fed_at < LATE_S:
            return False  # it brings much, as fast as it can
        return any(now - since >= LATE_S for _, _, since in self._waiters)

    async def reach(self, rev: int, timeout_s: float | None = None) -> bool:
        """Wait until a revision was applied or passed; False if it was not in time."""
        if self.revision >= rev:
            return True
        waiter = self._make_waiter()
        self._waiters.append((rev, waiter, time.monotonic()))
        late = asyncio.get_running_loop().call_later(LATE_S, self._be_late)
        timer = None
        if timeout_s is not None:
            timer = asyncio.get_running_loop().call_later(timeout_s, waiter.set)
        try:
            await waiter.wait()
        finally:
            late.cancel()
            if timer is not None:
                timer.cancel()
            self._waiters = [each for each in self._waiters if each[1] is not waiter]
        return self.revision >= rev

    def _be_late(self) -> None:
        self._late.set()

    # Applying -----------------------------------------------------------------------------------

    def _fed(self, items: Sequence[nats_consumer.Item], remaining: int) -> None:
        """What the consumer brings, and how much it has yet."""
        self._remaining, self._fed_at = remaining, time.monotonic()
        self._take(items)

    def _take(self, items: Sequence[nats_consumer.Item]) -> None:
        if items:
            self._moved_at = time.monotonic()
        self._tell_time(items)
        ready: list[nats_record.Delivered] = []
        for item in items:
            rev = nats_consumer.rev_of(item)
            if rev <= self._came:
                continue  # it has come the other way
            self._came = rev
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
                self.know_floor(item.floor)
            if not self._group:
                self.revision = rev
        self._apply(ready)
        # First: what is answered there is waited for by somebody at the other end of a line.
        self.on_applied()
        for rev, waiter, _ in self._waiters:
            if rev <= self.revision:
                waiter.set()

    def _tell_time(self, items: Sequence[nats_consumer.Item]) -> None:
        # Of what came at once the last one says most, but for what is waited for.
        up_s = age.up_s()
        for item in items if self.clock.is_waiting else items[-1:]:
            self.clock.came(nats_consumer.rev_of(item), item.stored_at, up_s)

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
            self.newest = records[-1]
            self.at = max(self.at, self.newest.at)
            self._replica.apply(records)

    def know_floor(self, floor: int) -> None:
        """Deletions up to this revision are forgotten."""
        if floor <= self.floor:
            return
        # What the former floor left over has been removed since, or will be found out.
        self.leftovers = {path: rev for path, rev in self.leftovers.items() if rev > self.floor}
        self.floor = floor
        for path in [path for path, (rev, _) in self.tombstones.items() if rev <= floor]:
            self.leftovers[path] = self.tombstones.pop(path)[0]
        self._replica.compacted(floor)


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
