"""Bringing the outbox into the log, once the server is back in touch.

Run by `engine.network`. Each write that waits is judged (`engine.fates`) against what its path has
in the log now, and written with that as its condition; if the path changes meanwhile, it is judged
anew. A loser becomes an entry (`engine.conflicts`) in one group with the winner, or before the
outbox drops it, so a crash between any two steps loses nothing and repeats nothing.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import anyio
import anyio.lowlevel

from moat_kv import errors
from moat_kv.engine import age, base, conflicts, fates, remote
from moat_kv.engine.copy_store import Pending
from moat_kv.engine.outbox import Canvas, Outbox
from moat_kv.entry import Head, LateWrite, Record, Write
from moat_kv.path import Path

_log = logging.getLogger(__name__)

#: So many are on their way at a time.
AT_ONCE = 64
#: So many of a path's newest records are looked at.
HISTORY = 100
#: What could not be brought in, though in touch, is tried again after so many seconds.
RETRY_S = 1.0

Lost = Callable[[conflicts.Conflict], None]
"""Told of a write that lost, or of the one that it won against."""


class Replayer:
    """Replays whatever waits whenever the engine is in touch.

    `is_busy` says whether a write of that path is on its way by itself. `origin` names the records
    of conflicts.
    """

    def __init__(
        self,
        outbox: Outbox,
        engine: remote.Remote,
        canvas: Canvas,
        *,
        origin: str,
        moment: Callable[[], age.Moment],
        is_busy: Callable[[Path], bool],
        on_conflict: Lost,
    ) -> None:
        self._outbox = outbox
        self._engine = engine
        self._canvas = canvas
        self._origin = origin
        self._ticks = itertools.count(1)
        self._moment = moment
        self._is_busy = is_busy
        self._on_conflict = on_conflict
        self._wake = anyio.Event()
        self._retry = False
        #: The engine is in touch, and everything in it has been applied.
        self.may_go = False
        #: How many have been brought in, and how many of them met another write.
        self.replayed = 0
        self.met = 0

    def wake(self) -> None:
        """Something waits, may go, or is not busy any more."""
        self._wake.set()

    async def run(self) -> None:
        """Replay until cancelled. What is cancelled on its way is found again by its id."""
        while True:
            await self._wake.wait()
            self._wake, self._retry = anyio.Event(), False
            await self._replay_all()
            if self._retry and self.may_go:
                await anyio.sleep(RETRY_S)
                self._wake.set()

    async def _replay_all(self) -> None:
        if not self.may_go:
            return
        queue = iter([each for each in self._outbox.waiting() if not self._is_busy(each.path)])

        async def work() -> None:
            for pending in queue:
                await self._replay(pending)

        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(work)

    async def _replay(self, pending: Pending) -> None:
        try:
            while self.may_go and self._outbox.is_waiting(pending):
                if self._is_busy(pending.path):
                    return  # it wakes us when it is done
                if await self._step(pending):
                    return
        except (errors.Unknown, errors.Detached, errors.EngineError) as exc:
            _log.debug("%s waits on: %s", pending.path, exc)
            self._retry = True

    async def _step(self, pending: Pending) -> bool:
        """One attempt; whether it came to an end. Raises what says that it may be tried later."""
        head = self._canvas.head(pending.path)
        since: list[Record] = []
        if head is not None and head.rev != pending.base:
            kept = await self._engine.history(pending.path, limit=HISTORY)
            since = [record for record in kept if record.rev > pending.base]
            if self._canvas.head(pending.path) is not head or (kept and kept[0].rev != head.rev):
                await anyio.lowlevel.checkpoint()
                return False
        at = self._made_at(pending)
        verdict = fates.judge(pending, at, head, since)
        if verdict.fate is not fates.Fate.STORED and not await self._carry_out(
            pending, at, verdict, head
        ):
            return False
        self._outbox.drop(pending)
        self.replayed += 1
        return True

    def _made_at(self, pending: Pending) -> float:
        """When it was made, by the engine's time."""
        now = self._engine.now()
        since_contact_s = max(0.0, now - pending.contact_at)
        return now - age.age_s(pending.made, self._moment(), since_contact_s)

    async def _carry_out(
        self, pending: Pending, at: float, verdict: fates.Verdict, head: Head | None
    ) -> bool:
        """Write what the verdict says; False if the path has changed meanwhile."""
        mine = conflicts.Side(pending.id, at)
        theirs = None if head is None else conflicts.Side(f"{head.origin}:{head.tick}", head.at)
        late = LateWrite(
            pending.path,
            pending.value,
            origin=pending.origin,
            tick=pending.tick,
            at=at,
            after=verdict.expect,
        )
        if verdict.fate is fates.Fate.WRITE:
            self._outbox.published.add(pending.id)
            return await self._write(late) is None
        if verdict.fate is fates.Fate.WINS and head is not None and theirs is not None:
            conflict = conflicts.Conflict(pending.path, head.value, theirs, mine)
            self._outbox.published.add(pending.id)
            refused = await self._write(late, self._entry_of(conflict))
            if refused == str(conflict.place):  # it is there, from before a crash
                refused = await self._write(late)
        else:
            conflict = conflicts.Conflict(pending.path, pending.value, mine, theirs)
            refused = await self._write(self._entry_of(conflict))
            if refused == str(conflict.place):
                refused = None
        if refused is None:
            self.met += 1
            self._on_conflict(conflict)
        return refused is None

    def _entry_of(self, conflict: conflicts.Conflict) -> Write:
        return Write(
            conflict.place,
            conflicts.pack(conflict),
            origin=self._origin,
            tick=next(self._ticks),
            expect=0,
            strict=True,
        )

    async def _write(self, *writes: Write) -> str | None:
        """Submit a group and wait for it; the path whose condition did not hold, or None."""
        outcomes: list[base.Outcome] = []
        finished = anyio.Event()

        def done(outcome: base.Outcome) -> None:
            outcomes.append(outcome)
            finished.set()

        self._engine.submit(writes, done)
        await finished.wait()
        outcome = outcomes[0]
        if isinstance(outcome, errors.Conflict):
            return str(outcome.path)
        if isinstance(outcome, errors.MoatKvError):
            raise outcome
        return None
