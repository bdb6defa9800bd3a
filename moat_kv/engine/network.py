"""The engine of a server among many: a shared log, a copy of one's own, and an outbox.

A server starts one around a `remote.Remote`. While that is in touch, writes go to it; what they
become comes back through `apply`, and into the copy (`local_copy`). While it is not, the server
goes on from the copy: plain writes wait in the outbox (`outbox`), all others are refused with
Detached; afterwards `replaying` brings them in. A plain write that the log does not acknowledge
within `patience_s` is kept likewise, and answered so.

Until all of the outbox is on its way into the log, plain writes join its end, so that a client's
writes stay in order.
"""

from __future__ import annotations

import logging
import math
import pathlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel

from moat_kv import conflicts, errors
from moat_kv.engine import age, base, home, local_copy, outbox, remote, replaying
from moat_kv.engine.copy_store import State
from moat_kv.entry import Head, Record, Write
from moat_kv.path import Path

_log = logging.getLogger(__name__)

#: A plain write that is not acknowledged is kept, and answered as pending, after so many seconds.
PATIENCE_S = 1.0
#: A server that has a copy waits so long at its start for the network, in seconds.
TOUCH_S = 3.0


def is_plain(write: Write) -> bool:
    """Whether a write needs no agreement, so that it may be kept while there is none to be had."""
    return (
        write.expect is None
        and not write.guards
        and write.session is None
        and write.expires_at is None
        and not write.strict
    )


class _Launched(Write):
    """A plain write that was given to the log; once it is kept, with what a `LateWrite` has."""

    __slots__ = ("after", "at")

    def __init__(self, write: Write) -> None:
        super().__init__(
            write.path, write.value, origin=write.origin, tick=write.tick, idem=write.idem
        )
        self.after: int | None = None
        self.at: float | None = None


class _Lane:
    """The plain writes of one path that are with the log; they get there in order."""

    __slots__ = ("count", "rev")

    def __init__(self) -> None:
        self.count = 0
        #: Of the last one that was stored.
        self.rev = 0


@dataclass(slots=True, eq=False)
class _Flight:
    """What became of a plain write that was given to the log."""

    write: _Launched
    done: base.Done
    due: float
    made: age.Moment
    contact_at: float
    """The engine's time when it had last been heard of then."""
    on: int
    """The newest record of its path that was there when it was made."""
    is_over: bool = False
    is_kept: bool = False


class NetworkEngine(base.Engine):
    """`base.Engine` in touch with a network, or without. `origin` names its conflicts' records."""

    #: Strict writes may hang for seconds; plain ones must not wait behind them.
    inside_records = 20_000

    shared = True

    def __init__(
        self,
        engine: remote.Remote,
        file: pathlib.Path,
        *,
        origin: str,
        patience_s: float = PATIENCE_S,
        moment: Callable[[], age.Moment] = age.now,
        copy: local_copy.LocalCopy | None = None,
    ) -> None:
        self._engine = engine
        self._copy = local_copy.LocalCopy(file) if copy is None else copy
        self._file = file
        self._origin = origin
        self._patience_s = patience_s
        self._moment = moment
        #: Told of each conflict that this server found.
        self.on_conflict: replaying.Lost = lambda conflict: None
        #: Since when it is in touch, or not; seconds since 1970, by this machine.
        self.since = 0.0
        self.attached = self._was_cut_off = False
        self.trouble = "not in touch with the network yet"
        self._flights: deque[_Flight] = deque()
        self._in_flight: dict[Path, _Lane] = {}
        self._some_flight = anyio.Event()

    # Opening and closing ------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, replica: base.Replica) -> AsyncIterator[None]:
        """See `base.Engine.running`. With a copy it is entered soon, in touch or not; without one,
        when everything has been read.

        `replica` is an `outbox.Canvas`.
        """
        self._canvas: outbox.Canvas = replica  # type: ignore[assignment]
        self._loaded, self._heard = anyio.Event(), anyio.Event()
        self._is_open = True
        async with self._copy.running():
            self.home = home.of(self._file)
            known = await self._load()
            self._outbox = outbox.Outbox(self._copy, self._canvas, moment=self._moment)
            self._replayer = replaying.Replayer(
                self._outbox,
                self._engine,
                self._canvas,
                origin=self._origin,
                moment=self._moment,
                is_busy=self._in_flight.__contains__,
                on_conflict=self._conflict,
            )
            self._outbox.on_kept = self._replayer.add
            async with (
                self._engine.following(self, known),
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(self._replayer.run)
                tasks.start_soon(self._keep_late_ones)
                await self._loaded.wait()
                with anyio.move_on_after(TOUCH_S):
                    await self._heard.wait()
                try:
                    yield
                finally:
                    self._is_open = False
                    tasks.cancel_scope.cancel()

    async def _load(self) -> remote.Known:
        """Take the copy; if it is damaged, or a part only, everything comes from the log."""
        try:
            if not self._copy.state.epoch:
                self._copy.restart()
            newest, tombstones = None, {}
            async for records in self._copy.heads():
                self._canvas.apply(records)
                newest = records[-1]
                for record in records:
                    if record.value is None:
                        tombstones[record.path] = (record.rev, record.at)
                await anyio.lowlevel.checkpoint()
        except errors.StorageDamaged as exc:
            _log.error("the copy is taken from the network anew: %s", exc)
            self._canvas.restart()
            self._copy.restart()
            newest, tombstones = None, {}
        state = self._copy.state
        self.epoch, self.revision, self.floor = state.epoch, state.revision, state.floor
        self._is_whole = bool(state.epoch)
        if self._is_whole:
            if state.floor:
                self._canvas.compacted(state.floor)
            self._loaded.set()
        return remote.Known(state, newest, tombstones)

    # What the log tells (remote.Follower) -------------------------------------------------------

    def head(self, path: Path) -> Head | None:
        return self._canvas.head(path)

    def apply(self, records: Sequence[Record]) -> None:
        self._canvas.apply(records)
        self.revision = records[-1].rev
        self._applied(records)

    def _applied(self, records: Sequence[Record]) -> None:
        # A part of a tree is no copy: until all of it is there, it is one of nothing.
        epoch = self.epoch if self._is_whole else ""
        # Before we are in touch the engine's time is not known.
        contact_at = self._engine.now() if self.attached else self._copy.state.contact_at
        self._copy.applied(records, State(epoch, self.revision, self.floor, contact_at))

    def compacted(self, floor: int) -> None:
        self.floor = floor
        self._canvas.compacted(floor)
        self._applied(())

    def message(self, topic: Path, data: bytes) -> None:
        self._canvas.message(topic, data)

    def restart(self) -> None:
        self._canvas.restart()
        self._copy.restart()
        self._is_whole = False
        self.revision = self.floor = 0

    def caught_up(self) -> None:
        self.attached, self.trouble = True, None
        self.epoch = self._engine.epoch
        if not self._is_whole:
            self._is_whole = True
            self._canvas.complete()
        was_cut_off, before = self._was_cut_off, self.since
        self.since, self._was_cut_off = self._moment().wall, False
        self._loaded.set()
        self._heard.set()
        self._applied(())
        self._replayer.go()
        if was_cut_off:
            away_s, waiting = max(0.0, self.since - before), len(self._outbox)
            text = "in touch with the network again after %.0f s, revision %d; writes waiting: %d"
            _log.warning(text, away_s, self.revision, waiting)
        else:
            _log.info("in touch with the network, at revision %d", self.revision)
        if self.on_touch is not None:
            self.on_touch()

    def cut_off(self, reason: str) -> None:
        self.attached, self.trouble = False, f"cut off from the network: {reason}"
        self.since, self._was_cut_off = self._moment().wall, True
        self._replayer.stop()
        self._heard.set()
        # Who has no tree yet does not serve, and who stops has no news.
        level = logging.WARNING if self._loaded.is_set() and self._is_open else logging.INFO
        _log.log(level, "cut off from the network: %s; plain writes are kept here", reason)
        if self.on_touch is not None:
            self.on_touch()

    def _conflict(self, conflict: conflicts.Conflict) -> None:
        winner = "a deletion that is forgotten" if conflict.winner is None else conflict.winner.id
        _log.warning(
            "%s: %s has lost against %s, and is kept at %s",
            conflict.path,
            conflict.loser.id,
            winner,
            conflict.place,
        )
        self.on_conflict(conflict)

    # Writing ------------------------------------------------------------------------------------

    def submit(self, writes: Sequence[Write], done: base.Done) -> None:
        if len(writes) == 1 and is_plain(writes[0]):
            if self.attached and self._is_next(writes[0].path):
                self._launch(writes[0], done)
            else:
                self._outbox.take(writes[0], done)
            return
        if not self.attached:
            done(errors.Detached(self.trouble or "not in touch with the network"))
            return
        for write in writes if len(self._outbox) else ():
            if write.path in self._outbox:
                done(errors.Detached(f"a write of {write.path} waits to be brought in"))
                return
        self._engine.submit(writes, done)

    def _is_next(self, path: Path) -> bool:
        """Whether nothing that was kept comes into the log behind what is submitted now."""
        waiting = len(self._outbox)
        if not waiting:
            return True
        if waiting > replaying.AT_ONCE or path in self._outbox:
            return False
        return self._outbox.are_all(self._replayer.is_submitted)

    def _launch(self, write: Write, done: base.Done) -> None:
        head = self._canvas.head(write.path)
        due = anyio.current_time() + self._patience_s
        on = 0 if head is None else head.rev
        contact_at = self._outbox.contact_at
        flight = _Flight(_Launched(write), done, due, self._moment(), contact_at, on)
        self._flights.append(flight)
        self._some_flight.set()
        self._in_flight.setdefault(write.path, _Lane()).count += 1
        self._outbox.published.add(f"{write.origin}:{write.tick}")
        self._engine.submit((flight.write,), lambda outcome: self._landed(flight, outcome))

    def _landed(self, flight: _Flight, outcome: base.Outcome) -> None:
        write, id_ = flight.write, f"{flight.write.origin}:{flight.write.tick}"
        flight.is_over = True
        is_stored = not isinstance(outcome, errors.MoatKvError)
        on = self._stands_on(flight)
        self._release(write.path, 0 if isinstance(outcome, errors.MoatKvError) else outcome[0].rev)
        if is_stored or not isinstance(outcome, errors.Unknown):
            self._outbox.published.discard(id_)
        if flight.is_kept:
            if is_stored:
                self._outbox.stored(write.path, id_)
        elif isinstance(outcome, errors.Unknown | errors.Detached):
            self._keep(flight, on)
        else:
            flight.done(outcome)
        waiting = self._outbox.on_disk(write.path)
        if waiting is not None:
            self._replayer.add(waiting)

    def _release(self, path: Path, rev: int) -> None:
        """One is over, and stored at `rev`; 0: not stored."""
        lane = self._in_flight[path]
        lane.rev = max(lane.rev, rev)
        lane.count -= 1
        if not lane.count:
            del self._in_flight[path]

    def _stands_on(self, flight: _Flight) -> int:
        """The record that it is on top of: those that were launched before it count, too."""
        return max(flight.on, self._in_flight[flight.write.path].rev)

    async def _keep_late_ones(self) -> None:
        flights = self._flights
        while True:
            while flights and flights[0].is_over:
                flights.popleft()
            if not flights:
                self._some_flight = anyio.Event()
                await self._some_flight.wait()
                continue
            wait_s = flights[0].due - anyio.current_time()
            if wait_s > 0:
                await anyio.sleep(wait_s)
                continue
            flight = flights.popleft()
            flight.is_kept = True
            # From now on it counts from when it was made: if others write the path before it is
            # stored, it must not come on top of them by itself; nor, stored late, win over what was
            # made after it.
            flight.write.after = on = self._stands_on(flight)
            flight.write.at = self.now() - age.age_s(flight.made, self._moment(), math.inf)
            self._keep(flight, on)

    def _keep(self, flight: _Flight, on: int) -> None:
        self._outbox.take(
            flight.write, flight.done, made=flight.made, contact_at=flight.contact_at, on=on
        )

    # Reading ------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._engine.now()

    async def catch_up(self) -> None:
        self._need_touch()
        await self._engine.catch_up()

    async def history(self, path: Path, *, limit: int, before: int | None = None) -> list[Record]:
        self._need_touch()
        return await self._engine.history(path, limit=limit, before=before)

    async def records(self, since: int) -> AsyncIterator[Sequence[Record]]:
        self._need_touch()
        async for records in self._engine.records(since):
            yield records

    async def compact(self) -> int:
        self._need_touch()
        return await self._engine.compact()

    def _need_touch(self) -> None:
        if not self.attached:
            raise errors.Detached(self.trouble or "not in touch with the network")

    def send(self, topic: Path, data: bytes) -> None:
        """While cut off, only this server's own clients hear it."""
        if self.attached:
            self._engine.send(topic, data)
        else:
            self._canvas.message(topic, data)

    def describe(self) -> dict[str, Any]:
        """What the log says of itself, and `attached`, `since` (seconds since 1970), `outbox` (how
        many writes wait), `replayed` and `conflicts` (since the start).
        """
        return self._engine.describe() | {
            "attached": self.attached,
            "since": self.since,
            "outbox": len(self._outbox),
            "replayed": self._replayer.replayed,
            "conflicts": self._replayer.met,
        }
