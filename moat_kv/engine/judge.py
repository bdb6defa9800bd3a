"""Whether a group of writes may enter the log: the one place that knows the rules.

A `Judge` is for the engines that order writes themselves (memory, sqlite), and covers one commit:
it sees the applied state through the replica, and over it the records that it has admitted since,
and those of earlier commits that are not applied yet (`admitted`). An engine whose revisions come
from elsewhere (nats) takes the rules one by one: `unfit`, `refusal`, `unchanged`. Pure: no clock,
no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moat_kv import errors
from moat_kv.engine.base import BATCH_LIMIT, Replica
from moat_kv.entry import EXISTS, Guard, Head, Record, Write
from moat_kv.path import Path

_GUARD_ERRORS: dict[str, type[errors.GuardFailed]] = {
    "guard": errors.GuardFailed,
    "fence": errors.StaleFence,
}


class Judge:
    """Admits groups one after the other, and gives them revisions above `revision`."""

    def __init__(
        self, replica: Replica, revision: int, admitted: dict[Path, Record] | None = None
    ) -> None:
        self._replica = replica
        self._admitted = {} if admitted is None else admitted
        self.revision = revision
        #: What has to be stored, in order; unchanged `idem` writes are not among it.
        self.records: list[Record] = []
        #: For each of them the revision of its path's record before it, 0 if there is none.
        self.prevs: list[int] = []

    def admit(self, writes: Sequence[Write], at: float) -> list[Record] | errors.MoatKvError:
        """The group's records, or the error that refuses all of it."""
        admitted, replica_head = self._admitted, self._replica.head
        if len(writes) == 1:
            # The same as below for the group that is by far the most frequent.
            write = writes[0]
            head = admitted.get(write.path) or replica_head(write.path)
            if write.guards or write.expect is not None or write.after is not None:
                refused = refusal(write, head, self._head)
                if refused is not None:
                    return refused
            return [self._record(write, head, at)]
        if (bad := unfit(writes)) is not None:
            return bad
        heads: list[Head | None] = []
        for write in writes:
            head = admitted.get(write.path) or replica_head(write.path)
            # Nearly all writes have neither; asking costs a tenth of the call.
            if write.guards or write.expect is not None or write.after is not None:
                refused = refusal(write, head, self._head)
                if refused is not None:
                    return refused
            heads.append(head)
        return [self._record(write, head, at) for write, head in zip(writes, heads, strict=True)]

    def _head(self, path: Path) -> Head | None:
        return self._admitted.get(path) or self._replica.head(path)

    def _record(self, write: Write, head: Head | None, at: float) -> Record:
        path, value = write.path, write.value
        if value is None or write.idem:
            there = unchanged(write, head, at)
            if there is not None:
                return there
        self.revision = revision = self.revision + 1
        if write.at is not None:
            at = min(at, write.at)
        # Past NamedTuple's own constructor, which is Python: a third of this function's time.
        record = tuple.__new__(
            Record,
            (revision, path, value, at, write.origin, write.tick, write.session, write.expires_at),
        )
        self._admitted[path] = record
        self.records.append(record)
        self.prevs.append(0 if head is None else head.rev)
        return record


def unfit(writes: Sequence[Write]) -> errors.MoatKvError | None:
    """What is wrong with a group whatever the log holds, or None."""
    if len(writes) == 1 and not writes[0].guards:
        return None
    guarding = {guard.path for write in writes for guard in write.guards}
    size = len(writes) + len(guarding)
    if size > BATCH_LIMIT:
        return errors.BatchTooLarge(size, BATCH_LIMIT)
    if len({write.path for write in writes}) != len(writes):
        return errors.BadArguments("batch", "each path may come only once")
    return None


def refusal(
    write: Write, head: Head | None, head_of: Callable[[Path], Head | None]
) -> errors.MoatKvError | None:
    """Why a write may not enter, or None. `head`: of its path; `head_of` finds those of others."""
    for guard in write.guards:
        refused = _guard_refusal(guard, head_of(guard.path))
        if refused is not None:
            return refused
    if write.expect is not None:
        have = head.rev if head is not None and head.value is not None else 0
        if have != write.expect:
            return errors.Conflict(str(write.path), write.expect, have)
    if write.after is not None:
        newest = 0 if head is None else head.rev
        if newest != write.after:
            return errors.Conflict(str(write.path), write.after, newest)
    return None


def _guard_refusal(guard: Guard, head: Head | None) -> errors.MoatKvError | None:
    have = head.rev if head is not None and head.value is not None else 0
    if have == guard.rev or (guard.rev == EXISTS and have):
        return None
    if guard.kind == "session":
        return errors.SessionExpired(str(guard.path[-1]))
    return _GUARD_ERRORS[guard.kind](str(guard.path), guard.rev, have)


def unchanged(write: Write, head: Head | None, at: float) -> Record | None:
    """The record that is there already, if the write changes nothing."""
    if write.after is not None:
        # A deletion that was kept: others that were cut off have to see when it was made, also
        # where there is nothing to delete yet.
        return None
    if head is None:
        return None if write.value is not None else _never(write, at)
    plain = write.session is None and write.expires_at is None
    if head.value == write.value and ((write.idem and plain) or write.value is None):
        # Deleting what is deleted is not news either, or tombstones would never grow old.
        return Record(head.rev, write.path, head.value, head.at, head.origin, head.tick)
    return None


def _never(write: Write, at: float) -> Record:
    """What a deletion finds where nothing has ever been."""
    return Record(0, write.path, None, at, write.origin, write.tick)
