"""Groups of writes on their way into the log: judged, kept, applied, answered, in their order.

`engine.sqlite` hands over what is submitted. What waits is judged together and makes one commit,
whose records go to a `sqlite_saving.Saver`; when they are kept they are applied to the tree, and
then every group of the commit is answered. So many writers share one fsync.

While one commit is on its way to the disk, the next one is judged already, as if the first had come
about, so that the disk need not wait for the event loop in between. If the first fails, the other
fails with it, whatever it was; and nothing further is judged until both are answered. From then on,
until a value could be kept again, one commit holds deletions only, or none; those that failed
beside values are tried once more so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import anyio

from moat_kv import errors, waiting
from moat_kv.engine import base, judge, sqlite_saving
from moat_kv.entry import Record, Write
from moat_kv.path import Path

#: What one commit takes at most; one group goes in whole, however large it is.
COMMIT_RECORDS = 2_000
COMMIT_BYTES = 4 << 20
#: While one commit is under way, the next is made up as soon as so many records wait for it; fewer
#: may as well wait for company until the disk is free. (With 64 sets in flight the disk otherwise
#: rests for as long as it works: while a commit is applied and answered, and the next one judged.)
NEXT_RECORDS = 8

_Group = tuple[Sequence[Write], base.Done]

Applied = Callable[[Sequence[Record], Sequence[int]], None]
"""Told which records are in the tree now, and the revision that each replaced, 0 for none."""


class _Commit:
    """Groups that were judged together, and what becomes of each if their records are kept."""

    __slots__ = ("careful", "error", "groups", "is_over", "judged", "outcomes")

    def __init__(
        self,
        groups: Sequence[_Group],
        judged: judge.Judge,
        outcomes: Sequence[base.Outcome],
        *,
        careful: bool,
    ) -> None:
        self.groups = groups
        self.judged = judged
        self.outcomes = outcomes
        #: It was made up after a failure, of deletions only or without any.
        self.careful = careful
        #: Its records are kept, or `error` says why not.
        self.is_over = False
        self.error: BaseException | None = None


def _deletes(group: _Group) -> bool:
    """Whether a group only deletes."""
    return all(write.value is None for write in group[0])


class Committer:
    """Takes groups until it is closed.

    `given`: the last revision that was given to any record; `at`: the time of the newest record.
    `applied` is called after each commit that has records, `failed` with what one failed with.
    """

    def __init__(
        self,
        replica: base.Replica,
        saver: sqlite_saving.Saver,
        *,
        given: int,
        at: float,
        clock: Callable[[], float],
        applied: Applied,
        failed: Callable[[errors.StorageFailed], None],
    ) -> None:
        self._replica = replica
        self._saver = saver
        # Also to records that could not be kept: no revision is given twice.
        self._given = given
        self._at = at
        self._clock = clock
        self._applied = applied
        self._failed = failed
        self._waiting: deque[_Group] = deque()
        self._waiting_records = 0
        self._under_way: deque[_Commit] = deque()
        # Of the commits under way, each path's newest record.
        self._admitted: dict[Path, Record] = {}
        # What one of them failed with; those behind it will, too.
        self._failure: errors.StorageFailed | None = None
        # Since a commit has failed and until a value is kept: deletions, which may be taken where
        # nothing else is, are then committed apart, and nothing is judged ahead.
        self._careful = False
        # Deletions of commits that failed with values beside them; they have another try apart.
        self._again: list[_Group] = []
        self._open = True
        self._make_waiter = waiting.maker()
        self._wake = self._make_waiter()

    @property
    def waiting(self) -> int:
        """How many groups are not on their way to the disk yet."""
        return len(self._waiting) + sum(len(each.groups) for each in list(self._under_way)[1:])

    def submit(self, writes: Sequence[Write], done: base.Done) -> None:
        """See `base.Engine.submit`. Not after `close`."""
        self._waiting.append((writes, done))
        self._waiting_records += len(writes)
        self._wake.set()

    def close(self) -> None:
        """Take no more; `run` ends when everything is answered."""
        self._open = False
        self._wake.set()

    async def run(self) -> None:
        """Commit what comes. Not to be cancelled: what was submitted is finished first."""
        with anyio.CancelScope(shield=True):
            while self._waiting or self._under_way or self._open:
                if self._under_way and self._under_way[0].is_over:
                    self._end(self._under_way.popleft())
                elif self._may_begin():
                    self._begin(self._take())
                else:
                    await self._wake.wait()
                    self._wake = self._make_waiter()

    def _may_begin(self) -> bool:
        if not self._under_way:
            return bool(self._waiting)
        return (
            self._waiting_records >= NEXT_RECORDS
            and len(self._under_way) < self._saver.depth
            and self._failure is None
            and not self._careful
        )

    def _take(self) -> list[_Group]:
        """The groups of the next commit."""
        groups: list[_Group] = []
        records = size_bytes = 0
        while self._waiting and records < COMMIT_RECORDS and size_bytes < COMMIT_BYTES:
            if self._careful and groups and _deletes(self._waiting[0]) != _deletes(groups[0]):
                break
            group = self._waiting.popleft()
            groups.append(group)
            for write in group[0]:
                records += 1
                if write.value is not None:
                    size_bytes += len(write.value)
        self._waiting_records -= records
        return groups

    def _begin(self, groups: Sequence[_Group]) -> None:
        """Judge these groups, and hand over what is to be kept of them."""
        self._at = max(self._at, self._clock())
        judged = judge.Judge(self._replica, self._given, self._admitted)
        outcomes = [judged.admit(writes, self._at) for writes, _ in groups]
        commit = _Commit(groups, judged, outcomes, careful=self._careful)
        self._under_way.append(commit)
        if not judged.records:
            commit.is_over = True
            return
        self._given = judged.revision

        def kept(error: BaseException | None) -> None:
            commit.is_over = True
            commit.error = error
            self._wake.set()

        self._saver.keep(list(zip(judged.records, judged.prevs, strict=True)), kept)

    def _end(self, commit: _Commit) -> None:
        """Apply and answer a commit, or say why not. Those before it have been."""
        judged, admitted = commit.judged, self._admitted
        for record in judged.records:
            if admitted.get(record.path) is record:
                del admitted[record.path]
        if isinstance(commit.error, errors.StorageFailed):
            self._failure = self._failure or commit.error
        elif commit.error is not None:
            raise commit.error
        if self._failure is not None:
            self._refuse(commit, self._failure)
            return
        if judged.records:
            self._replica.apply(judged.records)
            self._applied(judged.records, judged.prevs)
            if self._careful:
                self._careful = all(record.value is None for record in judged.records)
        for (_, done), outcome in zip(commit.groups, commit.outcomes, strict=True):
            done(outcome)

    def _refuse(self, commit: _Commit, failure: errors.StorageFailed) -> None:
        self._careful = True
        self._failed(failure)
        # Also those that were refused: what they were judged against has not come about.
        for group in commit.groups:
            if _deletes(group) and not commit.careful:
                self._again.append(group)
            else:
                group[1](failure)
        if not self._under_way:
            self._failure = None
            self._waiting.extendleft(reversed(self._again))
            self._waiting_records += sum(len(writes) for writes, _ in self._again)
            self._again.clear()
