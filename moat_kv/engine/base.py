"""The contract of an engine: who holds the truth.

An engine is an ordered, durable log of records with compare-and-set and guards, atomic groups,
history, and fleeting messages. A server starts one with a `Replica` (its tree), submits writes,
and sees every record through `Replica.apply`, in the order of revisions, its own writes too.
`moat_kv.testing.engine_suite` tests an engine against this page.

An engine never decodes a value and never looks into the tree but through `Replica.head`.
"""

from __future__ import annotations

import abc
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import anyio.lowlevel

from moat_kv.entry import Head, Record, Write
from moat_kv.errors import MoatKvError
from moat_kv.path import Path

#: How many paths one atomic group may hold, on every engine: those that are written, and those that
#: guard a write.
BATCH_LIMIT = 1_000

Outcome = Sequence[Record] | MoatKvError
"""What became of a group: a record for each write, in order, or the error that refused all.

For an `idem` write that changed nothing the record is the one that was there before. For a single
plain write (without `expect`, guards, session, end, `strict`) it may be pending, see `entry`.
"""

Done = Callable[[Outcome], None]
"""Called once in the event loop, after the group was applied or refused; never blocks or raises."""


class Replica(Protocol):
    """Who applies the log. Its methods are called in the engine's event loop; none may block."""

    def head(self, path: Path) -> Head | None:
        """The newest applied record of a path, tombstones included; None if it has none."""

    def apply(self, records: Sequence[Record]) -> None:
        """Take the next records in order. Whole groups only: a batch is never seen by halves."""

    def compacted(self, floor: int) -> None:
        """Tombstones at or below this revision are gone; nobody can resume from below it."""

    def message(self, topic: Path, data: bytes) -> None:
        """A fleeting message, sent by `Engine.send` on any server of the network."""


class Engine(abc.ABC):
    """An ordered, durable log. Started once; its attributes hold from then on."""

    #: Changes whenever a revision may have been given out twice.
    epoch: str = ""
    #: The last revision that was applied; never falls.
    revision: int = 0
    #: Whoever knows the tree only up to a revision below this must take it anew.
    floor: int = 0
    #: So many records of clients it is given at a time; the rest wait in the server, in fair turns.
    #: Two commits of half as many still fill a disk's time.
    inside_records: int = 256
    #: None, or why writes cannot be made durable at present (a full disk, no quorum).
    trouble: str | None = None

    @abc.abstractmethod
    def running(self, replica: Replica) -> AbstractAsyncContextManager[None]:
        """Open the log, apply its present state to the replica, and serve until the context ends.

        On entry the replica has been given the newest record of every path that has one, in the
        order of revisions. On leaving, what was submitted is finished first.

        Raises StorageDamaged, StorageBusy, StorageFailed, EngineUnfit; StorageDamaged also while
        it serves, when the log turns out not to go on from what was applied.
        """

    @abc.abstractmethod
    def submit(self, writes: Sequence[Write], done: Done) -> None:
        """Ask for an atomic group of writes, each path at most once. Returns at once.

        Groups enter the log in the order in which they were submitted. (Where servers share a log,
        a plain write that meets another server's on its path enters behind that, and may be
        overtaken by groups of other paths that were under way with it.) `expect`, `guards` and
        `idem` are judged against everything that entered before. `done` gets, beside records,
        Conflict, GuardFailed, StaleFence, SessionExpired, BatchTooLarge, StorageFailed; Detached,
        when the log cannot be reached and nothing happened; Unknown, when it may have.
        """

    def now(self) -> float:
        """The engine's time, as well as it is known; seconds since 1970."""
        return time.time()

    async def catch_up(self) -> None:
        """Return when all that was acknowledged before, to anybody, has been applied.

        An engine of one server has nothing to wait for. Raises Detached.
        """
        await anyio.lowlevel.checkpoint()

    @abc.abstractmethod
    async def history(self, path: Path, *, limit: int, before: int | None = None) -> list[Record]:
        """The newest records of one path that are still kept, newest first, at most `limit`.

        `before`: only those with a lower revision. Raises Detached.
        """

    @abc.abstractmethod
    def records(self, since: int) -> AsyncIterator[Sequence[Record]]:
        """All kept records above a revision, in order, in slices, up to the present one."""

    @abc.abstractmethod
    async def compact(self) -> int:
        """Drop what the history limits allow to drop, now; returns the new floor."""

    @abc.abstractmethod
    def send(self, topic: Path, data: bytes) -> None:
        """Broadcast a fleeting message; lost if nobody listens."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts for `moat kv status`: kind, place, size in bytes, whatever the engine can say."""
