"""Bringing the outbox into the log, once the server is back in touch.

Run by `engine.network`. Each write that waits is judged (`engine.fates`) against what its path has
in the log now, and written with that as its condition; if the path changes meanwhile, it is judged
anew. A loser becomes an entry (`moat_kv.conflicts`) in one group with the winner, or before the
outbox drops it, so a crash between any two steps loses nothing and repeats nothing.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import anyio
import anyio.lowlevel

from moat_kv import conflicts, errors
from moat_kv.engine import age, base, fates, remote
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
        # What is to be replayed, in order; and the paths that are being replayed.
        self._queue: dict[Path, Pending] = {}
        self._active: set[Path] = set()
        # Those of them that are with the engine.
        self._submitted: dict[Path, Pending] = {}
        #: The engine is in touch, and everything in it has been applied.
        self.may_go = False
        # Since then, the engine has learnt what time it is.
        self._knows_time = False
        #: How many have been brought in, and how many of them met another write.
        self.replayed = 0
        self.met = 0

    def go(self) -> None:
        """The engine is in touch: bring in whatever waits."""
        self.may_go, self._knows_time = True, False
        self._queue = {pending.path: pending for pending in self._outbox.waiting()}
        self._wake.set()

    def stop(self) -> None:
        """It is not any more."""
        self.may_go = False

    def add(self, pending: Pending) -> None:
        """This one waits now, or may be replayed now."""
        self._queue[pending.path] = pending
        self._wake.set()

    def is_submitted(self, pending: Pending) -> bool:
        """Whether it is on its way into the log, so that what is submitted now comes after it."""
        return self._submitted.get(pending.path) is pending

    async def run(self) -> None:
        """Replay until cancelled. What is cancelled on its way is found again by its id."""
        async with anyio.create_task_group() as tasks:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                while self.may_go and self._queue and not self._knows_time:
                    await self._learn_time()
                while self.may_go and self._queue and len(self._active) < AT_ONCE:
                    path = next(iter(self._queue))
                    pending = self._queue.pop(path)
                    # Whoever is busy with it adds it again.
                    if path not in self._active and not self._is_busy(path):
                        self._active.add(path)
                        tasks.start_soon(self._replay, pending)

    async def _learn_time(self) -> None:
        self._knows_time = True
        try:
            await self._engine.learn_time()
        except errors.Detached as exc:
            # If it is cut off, `go` comes again; else what is known of the time has to do.
            _log.debug("the engine's time: %s", exc)

    async def _replay(self, pending: Pending) -> None:
        path = pending.path
        try:
            while self.may_go and self._outbox.is_waiting(pending) and not self._is_busy(path):
                try:
                    if await self._step(pending):
                        break
                except (errors.Unknown, errors.Detached, errors.EngineError) as exc:
                    _log.debug("%s waits on: %s", path, exc)
                    await anyio.sleep(RETRY_S)
        finally:
            self._active.discard(path)
            newest = self._outbox.on_disk(path)
            if newest is not None:
                self.add(newest)
            self._wake.set()

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
        has_lost = self._canvas.head(conflicts.PLACE / pending.id) is not None
        verdict = fates.judge(pending, at, head, since, has_lost=has_lost)
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
            return await self._write(pending, late) is None
        if verdict.fate is fates.Fate.WINS and head is not None and theirs is not None:
            conflict = conflicts.Conflict(pending.path, head.value, theirs, mine)
            self._outbox.published.add(pending.id)
            refused = await self._write(pending, late, self._entry_of(conflict))
            if refused == str(conflict.place):  # it is there, from before a crash
                refused = await self._write(pending, late)
        else:
            conflict = conflicts.Conflict(pending.path, pending.value, mine, theirs)
            refused = await self._write(pending, self._entry_of(conflict))
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

    async def _write(self, pending: Pending, *writes: Write) -> str | None:
        """Submit a group and wait for it; the path whose condition did not hold, or None."""
        outcomes: list[base.Outcome] = []
        finished = anyio.Event()
        self._submitted[pending.path] = pending

        def done(outcome: base.Outcome) -> None:
            outcomes.append(outcome)
            finished.set()

        self._engine.submit(writes, done)
        try:
            await finished.wait()
        finally:
            del self._submitted[pending.path]
        outcome = outcomes[0]
        if isinstance(outcome, errors.Conflict):
            return str(outcome.path)
        if isinstance(outcome, errors.MoatKvError):
            raise outcome
        return None
