"""Plain writes that the log has been given, until it has stored them or they have waited too long.

`engine.network` launches them here while it is in touch. One that is not acknowledged in time goes
to the outbox, which answers it; if it is stored after all, the outbox lets it go. Decides nothing
about what wins: `replaying` does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from moat_kv import errors
from moat_kv.engine import age, base, outbox, remote
from moat_kv.entry import Write
from moat_kv.path import Path


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


class Flights:
    """Those of one server. `patience_s`: how long each may take, in seconds."""

    def __init__(
        self,
        engine: remote.Remote,
        outbox_: outbox.Outbox,
        canvas: outbox.Canvas,
        *,
        patience_s: float,
        moment: Callable[[], age.Moment],
    ) -> None:
        self._engine = engine
        self._outbox = outbox_
        self._canvas = canvas
        self._patience_s = patience_s
        self._moment = moment
        self._flights: deque[_Flight] = deque()
        self._lanes: dict[Path, _Lane] = {}
        self._some = anyio.Event()

    def __contains__(self, path: Path) -> bool:
        """Whether one of that path is with the log."""
        return path in self._lanes

    def launch(self, write: Write, done: base.Done) -> None:
        """Give one to the log; it is answered when it is stored, or kept."""
        head = self._canvas.head(write.path)
        due = anyio.current_time() + self._patience_s
        on = 0 if head is None else head.rev
        contact_at = self._outbox.contact_at
        flight = _Flight(_Launched(write), done, due, self._moment(), contact_at, on)
        self._flights.append(flight)
        self._some.set()
        self._lanes.setdefault(write.path, _Lane()).count += 1
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
            self._outbox.on_kept(waiting)

    def _release(self, path: Path, rev: int) -> None:
        """One is over, and stored at `rev`; 0: not stored."""
        lane = self._lanes[path]
        lane.rev = max(lane.rev, rev)
        lane.count -= 1
        if not lane.count:
            del self._lanes[path]

    def _stands_on(self, flight: _Flight) -> int:
        """The record that it is on top of: those that were launched before it count, too."""
        return max(flight.on, self._lanes[flight.write.path].rev)

    async def keep_late_ones(self) -> None:
        """Keep what is not acknowledged in time, for ever."""
        flights = self._flights
        while True:
            while flights and flights[0].is_over:
                flights.popleft()
            if not flights:
                self._some = anyio.Event()
                await self._some.wait()
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
            flight.write.at = self._engine.now() - age.age_s(flight.made, self._moment(), math.inf)
            self._keep(flight, on)

    def _keep(self, flight: _Flight, on: int) -> None:
        self._outbox.take(
            flight.write, flight.done, made=flight.made, contact_at=flight.contact_at, on=on
        )
