"""A log that several engines share, with links that can be cut and answers that can hang.

For the tests of what goes on behind a real one: everything here happens at once, in the order in
which the test says, by a clock that the test sets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from moat_kv import codec, conflicts, errors
from moat_kv.engine import age, base, judge, remote
from moat_kv.entry import Head, Record, Write
from moat_kv.path import Path


class SharedLog:
    """The truth, and the time. Both rise only when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.epoch = "epoch-1"
        self.records: list[Record] = []
        self.heads: dict[Path, Record] = {}
        self.floor = 0
        self.links: list[FakeRemote] = []

    def head(self, path: Path) -> Head | None:
        return self.heads.get(path)

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self.records.append(record)
            self.heads[record.path] = record

    def compacted(self, floor: int) -> None:
        raise AssertionError

    def message(self, topic: Path, data: bytes) -> None:
        raise AssertionError

    @property
    def revision(self) -> int:
        return self.records[-1].rev if self.records else 0

    def commit(self, writes: Sequence[Write]) -> base.Outcome:
        self.now += 0.001
        judged = judge.Judge(self, self.revision)
        outcome = judged.admit(writes, self.now)
        self.apply(judged.records)
        for link in self.links:
            link.deliver()
        return outcome

    def forget(self, path: Path) -> None:
        """Drop the deletion of a path, and all before it."""
        gone = self.heads.pop(path)
        assert gone.value is None
        self.records = [record for record in self.records if record.path != path]
        self.floor = gone.rev
        for link in self.links:
            link.deliver()


class FakeRemote(remote.Remote):
    """One server's way to the log."""

    def __init__(self, log: SharedLog) -> None:
        self.log = log
        self.is_linked = False
        #: Groups are taken, but neither carried out nor answered.
        self.hangs = False
        #: Groups are carried out, but not answered.
        self.is_mute = False
        #: Its machine's date is wrong by so much, which it knows when it has been linked.
        self.wrong_s = 0.0
        self.has_been_linked = False
        #: What comes to it takes so long, and it does not know that.
        self.late_s = 0.0
        #: What is to happen when it is asked to learn what time it is.
        self.when_asked: Callable[[], None] = lambda: None
        self._follower: remote.Follower | None = None
        self._hanging: list[tuple[Sequence[Write], base.Done]] = []
        self._unanswered: list[tuple[base.Outcome, base.Done]] = []
        log.links.append(self)

    def running(self, replica: base.Replica) -> Any:
        raise NotImplementedError

    @asynccontextmanager
    async def following(
        self, follower: remote.Follower, known: remote.Known
    ) -> AsyncIterator[None]:
        since = known.state
        self._follower = follower
        self.epoch, self.revision, self.floor = self.log.epoch, since.revision, since.floor
        if since.epoch and (since.epoch != self.log.epoch or since.revision < self.log.floor):
            follower.restart()
            self.revision = self.floor = 0
        if self.is_linked:
            self._catch_up()
        else:
            follower.cut_off("the test has not linked it")
        try:
            yield
        finally:
            self.cut()
            self._follower = None

    def _catch_up(self) -> None:
        self.has_been_linked = True
        self.deliver()
        assert self._follower is not None
        self._follower.caught_up()

    def heal(self) -> None:
        self.is_linked = True
        if self._follower is not None:
            if self.revision < self.log.floor:
                self._follower.restart()
                self.revision = self.floor = 0
            self._catch_up()

    def cut(self, *, happened: bool = False) -> None:
        """`happened`: what hangs is written all the same."""
        was_linked, self.is_linked = self.is_linked, False
        if self._follower is not None and was_linked:
            self._follower.cut_off("the test has cut it")
        hanging, self._hanging = self._hanging, []
        unanswered, self._unanswered = self._unanswered, []
        for writes, _done in hanging:
            if happened:
                self.log.commit(writes)
        for done in [done for _, done in hanging] + [done for _, done in unanswered]:
            done(errors.Unknown("the test has cut it"))

    def answer_one(self) -> None:
        """The first of what hangs is carried out and answered."""
        writes, done = self._hanging.pop(0)
        done(self.log.commit(writes))

    def answer(self) -> None:
        """What hangs is carried out, and everything is answered."""
        self.hangs = self.is_mute = False
        for writes, done in self._hanging:
            done(self.log.commit(writes))
        for outcome, done in self._unanswered:
            done(outcome)
        self._hanging, self._unanswered = [], []

    def deliver(self) -> None:
        if self._follower is None or not self.is_linked:
            return
        newer = [record for record in self.log.records if record.rev > self.revision]
        if newer:
            self.revision = newer[-1].rev
            self._follower.apply(newer)
        if self.floor < self.log.floor:
            self.floor = self.log.floor
            self._follower.compacted(self.floor)

    def submit(self, writes: Sequence[Write], done: base.Done) -> None:
        if not self.is_linked:
            done(errors.Detached("the test has cut it"))
        elif self.hangs:
            self._hanging.append((writes, done))
        elif self.is_mute:
            self._unanswered.append((self.log.commit(writes), done))
        else:
            done(self.log.commit(writes))

    async def learn_time(self) -> None:
        self.when_asked()
        if not self.is_linked:
            raise errors.Detached("the test has cut it")

    def now(self) -> float:
        return self.log.now + (-self.late_s if self.has_been_linked else self.wrong_s)

    async def history(self, path: Path, *, limit: int, before: int | None = None) -> list[Record]:
        if not self.is_linked:
            raise errors.Detached("the test has cut it")
        found = [r for r in self.log.records if r.path == path and (not before or r.rev < before)]
        return found[::-1][:limit]

    async def records(self, since: int) -> AsyncIterator[Sequence[Record]]:
        yield [record for record in self.log.records if record.rev > since]

    async def compact(self) -> int:
        return self.log.floor

    def send(self, topic: Path, data: bytes) -> None:
        for link in self.log.links:
            if link.is_linked and link._follower is not None:
                link._follower.message(topic, data)

    def describe(self) -> dict[str, Any]:
        return {"kind": "fake"}


class Canvas:
    """What a server shows: the log's state, and over it what waits."""

    def __init__(self) -> None:
        self.heads: dict[Path, Record] = {}
        self.covers: dict[Path, Record] = {}
        self.floor = 0
        self.restarts = 0
        self.completions = 0
        self._revision = 0

    def head(self, path: Path) -> Head | None:
        return self.heads.get(path)

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            assert record.rev > self._revision
            self._revision = record.rev
            self.heads[record.path] = record

    def compacted(self, floor: int) -> None:
        self.floor = floor
        for record in list(self.heads.values()):
            if record.value is None and record.rev <= floor:
                del self.heads[record.path]

    def message(self, topic: Path, data: bytes) -> None:
        pass

    def cover(self, record: Record) -> None:
        self.covers[record.path] = record

    def uncover(self, path: Path) -> None:
        self.covers.pop(path, None)

    def complete(self) -> None:
        self.completions += 1

    def restart(self) -> None:
        self.heads.clear()
        self._revision = 0
        self.restarts += 1

    def shown(self) -> dict[Path, Any]:
        """The values, without conflicts."""
        everything = self.heads | self.covers
        return {
            path: codec.unpack(record.value)
            for path, record in everything.items()
            if record.value is not None and path[: len(conflicts.PLACE)] != conflicts.PLACE
        }


class Clock:
    """One machine's clocks: right about durations, wrong about the date."""

    def __init__(self, log: SharedLog, wrong_s: float = 0.0) -> None:
        self._log = log
        self.wrong_s = wrong_s
        self.boot = 1

    def __call__(self) -> age.Moment:
        return age.Moment(f"boot-{self.boot}", self._log.now, self._log.now + self.wrong_s)
