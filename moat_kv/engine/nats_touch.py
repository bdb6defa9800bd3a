"""Whether a server is in touch with its network: judged by acknowledgements, not by connections.

`nats_remote` runs `judge` all the time and `prove` with each connection, and tells what it sends
and what is acknowledged. Who waits for an acknowledgement too long looks for it in two ways at
once: a probe, a message that nobody reads, on this connection, and one through each other node,
over a connection of its own. If another node answers first, the server goes on with that one; it
may be this node that is frozen, or without a majority. So a slow network is told from a node that
is of no use without a guess of how slow it is. Only when nothing is acknowledged anywhere for some
seconds is the server cut off. What is acknowledged and does not come back, by a consumer or from a
copy, is of no use either.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from moat_kv.engine import (
    age,
    nats_connection,
    nats_direct,
    nats_feed,
    nats_line,
    nats_stream,
    nats_subjects,
)

_log = logging.getLogger(__name__)

#: Without acknowledgements for so long, while something waits for one, a server is cut off; in
#: seconds. On a slow line it is more, see `Touch.slowness_s`, up to a limit.
DETACH_S = 3.0
DETACH_LIMIT_S = 15.0
#: How slow a line is, is told by so many of the last round trips. An acknowledgement takes so many:
#: to the node, from there to the one that leads, and from there to the others.
RECENT = 9
TRIPS = 3
#: A round trip is measured so often, in seconds.
MEASURE_S = 1.0
#: An acknowledgement that takes longer is doubted, in seconds; on a slow line other nodes are asked
#: later than that.
LATE_S = 1.0
#: A connection that is new has so long before that, in seconds.
NEW_S = 1.5
#: How often the clock is looked at, in seconds.
LOOK_S = 0.2
#: A look that comes later than this was held up (a stopped process, a sleeping machine); what was
#: acknowledged meanwhile may still wait in the socket, so the time that was lost does not count.
HELD_UP_S = 0.5
#: What nothing has become of is tried again after so many seconds.
AGAIN_S = 1.0
#: Another node is of use if what it has acknowledged can be read there so soon, in seconds.
SHOWN_S = 3.0
#: What was acknowledged is applied here unless nothing at all comes for so long, in seconds.
APPLY_S = 5.0


class Touch:
    """`attached` is told when all that was there before is applied, `cut_off` why it is not.

    `check` is asked before `attached`, with each connection; it may raise nats_connection.NoAnswer.
    """

    def __init__(
        self,
        line: nats_line.Line,
        names: nats_subjects.Names,
        feed: nats_feed.Feed,
        *,
        check: Callable[[], None],
        attached: Callable[[], None],
        cut_off: Callable[[str], None],
    ) -> None:
        self._line = line
        self._names = names
        self._feed = feed
        self._check = check
        self._attached = attached
        self._cut_off = cut_off
        #: None: not known yet.
        self.is_in_touch: bool | None = None
        #: Why nothing is acknowledged, if anything is known of it.
        self.trouble: str | None = None
        # Since when an acknowledgement is waited for, by the monotonic clock; None: for none.
        self._since: float | None = None
        # How many there have been.
        self._count = 0
        self._trips_s: deque[float] = deque(maxlen=RECENT)

    # What happens -------------------------------------------------------------------------------

    def wait(self) -> None:
        """Something was sent, or would be if there were a connection."""
        if self._since is None:
            self._since = time.monotonic()

    def acknowledged(self) -> None:
        """Something was stored."""
        self._since = None
        self._count += 1

    def leave(self, reason: str) -> None:
        """The server is cut off, whatever is acknowledged."""
        if self.is_in_touch is not False:
            self.is_in_touch = False
            self._cut_off(reason)

    def _give_back(self, lost_s: float) -> None:
        if self._since is not None:
            self._since = min(self._since + lost_s, time.monotonic())

    @property
    def waits_s(self) -> float:
        """For how long an acknowledgement has been waited for, in seconds."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    @property
    def slowness_s(self) -> float:
        """How long an acknowledgement may well take, in seconds."""
        trip_s = statistics.median(self._trips_s) if self._trips_s else 0.0
        return TRIPS * trip_s

    async def measure(self, connection: nats_connection.Connection) -> None:
        """Know how slow the line is; for ever. Raises nats_connection.NoAnswer."""
        while True:
            self._trips_s.append(await connection.round_trip_s())
            await anyio.sleep(MEASURE_S)

    # What follows from it -----------------------------------------------------------------------

    async def judge(self) -> None:
        """Say so when nothing is acknowledged for too long; for ever."""
        seen = 0
        while True:
            began = time.monotonic()
            await anyio.sleep(LOOK_S)
            held_up_s = time.monotonic() - began - LOOK_S
            if held_up_s > HELD_UP_S:
                self._give_back(held_up_s)
            limit_s = min(DETACH_LIMIT_S, DETACH_S + 2 * self.slowness_s)
            # (At the start it takes as long as it takes to have everything applied.)
            is_moving, seen = self._feed.revision != seen, self._feed.revision
            if self.waits_s > limit_s and (self.is_in_touch or not is_moving):
                if self._line.connection is None:
                    self.leave(self._line.reason)
                else:
                    self.leave(self.trouble or "NATS does not acknowledge (no quorum?)")

    async def prove(self, connection: nats_connection.Connection) -> None:
        """Find out whether this connection is of use, now and whenever there is doubt; for ever.

        Ends the connection if another node is of use instead.
        """
        late_s = NEW_S
        while True:
            async with self.looking_elsewhere(late_s):
                await self._probe_until_applied(connection)
            if not connection.is_of_use:
                self._check()
            connection.is_of_use, self.trouble = True, None
            if not self.is_in_touch:
                self.is_in_touch = True
                self._attached()
            await self._until_late()
            late_s = self.slowness_s

    async def _until_late(self) -> None:
        while True:
            await anyio.sleep(LOOK_S)
            stands_s = self._feed.stands_s - self.slowness_s
            if max(self.waits_s, stands_s) > LATE_S:
                return

    async def _probe_until_applied(self, connection: nats_connection.Connection) -> None:
        while True:
            self.wait()
            if await self.probe(connection):
                return
            await anyio.sleep(AGAIN_S)

    async def probe(self, connection: nats_connection.Connection) -> bool:
        """Whether a write is acknowledged, and all that was there before it is applied."""
        sent_s = age.up_s()
        try:
            rev = await nats_stream.sure_end(connection, self._names)
        except nats_connection.NoAnswer as exc:
            _log.debug("NATS: a probe: %s", exc)
            return False
        self._feed.clock.acknowledged(rev, sent_s, age.up_s())
        self.acknowledged()
        seen = -1
        while self._feed.revision > seen:
            seen = self._feed.revision
            if await self._feed.reach(rev, APPLY_S):
                return True
        self.leave("what is written does not come back")
        return False

    @asynccontextmanager
    async def looking_elsewhere(self, late_s: float) -> AsyncIterator[None]:
        """From so many seconds on, go on with another node if one acknowledges, and this ends."""
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look_elsewhere, late_s, self._count)
            try:
                yield
            except Exception as exc:  # as it is, not in a group
                failure = exc
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _look_elsewhere(self, late_s: float, count: int) -> None:
        await anyio.sleep(late_s)
        while True:
            rev = self._feed.revision
            try:
                better = await self._line.elsewhere(self._acknowledges)
            except nats_connection.NoAnswer as exc:
                _log.debug("NATS: no other node is of use: %s", exc)
                await anyio.sleep(AGAIN_S)
                continue
            if self._count == count or self._feed.revision == rev:
                self.acknowledged()
                self._line.change_to(better)
                return
            # This one acknowledges, and records come: all have been slow, not it alone.
            await better.drop()
            await anyio.sleep(AGAIN_S)

    async def _acknowledges(self, connection: nats_connection.Connection) -> bool:
        try:
            rev = await nats_stream.sure_end(connection, self._names)
            with anyio.move_on_after(SHOWN_S):
                await nats_direct.until_there(connection, self._names, rev)
                return True
        except nats_connection.NoAnswer:
            pass
        return False
