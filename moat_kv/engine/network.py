"""The engine of a server among many: a shared log, a copy of one's own, and an outbox.

A server starts one around a `remote.Remote`. While that is in touch, writes go to it; what they
become comes back through `apply`, and into the copy (`local_copy`). While it is not, the server
goes on from the copy: plain writes wait in the outbox (`outbox`), all others are refused with
Detached; afterwards `replaying` brings them in. A plain write that the log does not acknowledge
within `patience_s` is kept likewise, and answered so (`flights`).

Until all of the outbox is on its way into the log, plain writes join its end, so that a client's
writes stay in order.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

from moat_kv import conflicts, errors
from moat_kv.engine import age, base, flights, home, local_copy, outbox, remote, replaying
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
            self._flights = flights.Flights(
                self._engine,
                self._outbox,
                self._canvas,
                patience_s=self._patience_s,
                moment=self._moment,
            )
            self._replayer = replaying.Replayer(
                self._outbox,
                self._engine,
                self._canvas,
                origin=self._origin,
                moment=self._moment,
                is_busy=self._flights.__contains__,
                on_conflict=self._conflict,
            )
            self._outbox.on_kept = self._replayer.add
            async with (
                self._engine.following(self, known),
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(self._replayer.run)
                tasks.start_soon(self._flights.keep_late_ones)
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
                self._flights.launch(writes[0], done)
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
