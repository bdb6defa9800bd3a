"""Forgets old deletions: first a record that says up to where, then their removal.

Run by `engine.nats` on each server now and then, and on demand; of several that want to at once one
is first, and the others see its record. The history of live paths needs no help: the stream keeps
so many messages of a subject. Removal is by subject and up to the deletion's own sequence, so a
record that came since stays.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import anyio

from moat_kv.engine import nats_connection, nats_feed, nats_publish, nats_stream, nats_subjects

_log = logging.getLogger(__name__)

#: A server looks for old deletions this often, in seconds; each at another time.
EVERY_S = 600.0
#: So many are removed side by side.
SIDE_BY_SIDE = 16
#: The record that raises the floor must have been applied within this time, in seconds.
APPLY_S = 5.0

Connected = Callable[[], Awaitable[nats_connection.Connection]]
"""The present connection, waited for; raises Detached."""


class Compactor:
    """`tombstone_s`: after how many seconds a deletion may be forgotten; `now`: the engine's time,
    for a server whose date is wrong must not forget what others still need.
    """

    def __init__(
        self,
        names: nats_subjects.Names,
        feed: nats_feed.Feed,
        *,
        tombstone_s: float,
        connected: Connected,
        now: Callable[[], float],
    ) -> None:
        self._names = names
        self._feed = feed
        self._tombstone_s = tombstone_s
        self._connected = connected
        self._now = now
        self._busy = anyio.Lock()

    async def run(self) -> None:
        """Compact now and then, for ever."""
        while True:
            await anyio.sleep(EVERY_S * (0.5 + random.random()))
            try:
                await self.compact()
            except (nats_connection.NoAnswer, nats_connection.Refused) as exc:
                _log.info("NATS: deletions will be forgotten later: %s", exc)

    async def compact(self) -> int:
        """Forget what is old enough; the floor then.

        Raises Detached, nats_connection.NoAnswer, nats_connection.Refused.
        """
        async with self._busy:
            connection = await self._connected()
            floor = self._new_floor()
            if floor > self._feed.floor:
                await self._announce(connection, floor)
            await self._remove(connection)
        return self._feed.floor

    def _new_floor(self) -> int:
        """The revision up to which all deletions are old enough."""
        oldest = self._now() - self._tombstone_s
        floor = 0
        for rev, at in sorted(self._feed.tombstones.values()):
            if at >= oldest:
                break
            floor = rev
        return floor

    async def _announce(self, connection: nats_connection.Connection, floor: int) -> None:
        """Write the record, and wait until it was applied here."""
        known, rev = await nats_stream.floor(connection, self._names)
        if known < floor:
            publisher = nats_publish.Publisher(connection)
            await publisher.open()
            message = nats_publish.Message(
                subject=self._names.floor, body=nats_stream.floor_body(floor), expect=rev
            )
            (answer,) = await publisher.singly([message])
            await publisher.close()
            if isinstance(answer, nats_publish.Open):
                raise nats_connection.NoAnswer(answer.reason)
            if isinstance(answer, nats_publish.Refused) and not answer.conflict:
                raise nats_connection.NoAnswer(answer.reason)
            # A conflict: another server was first.
            rev = (await nats_stream.floor(connection, self._names))[1]
        if not await self._feed.reach(rev, APPLY_S):
            raise nats_connection.NoAnswer("the floor's record was not seen in time")

    async def _remove(self, connection: nats_connection.Connection) -> None:
        """Take what is below the floor out of the stream, with what was there before it."""
        below = {p: rev for p, rev in self._feed.leftovers.items() if rev <= self._feed.floor}
        limiter = anyio.CapacityLimiter(SIDE_BY_SIDE)

        async def remove(subject: str, rev: int) -> None:
            async with limiter:
                await connection.api(
                    f"STREAM.PURGE.{self._names.stream}", {"filter": subject, "seq": rev + 1}
                )

        try:
            async with anyio.create_task_group() as tasks:
                for path, rev in below.items():
                    tasks.start_soon(remove, self._names.subject(path), rev)
        except* (nats_connection.NoAnswer, nats_connection.Refused) as group:
            raise nats_connection.NoAnswer(str(group.exceptions[0])) from group
        for path, rev in below.items():
            if self._feed.leftovers.get(path) == rev:
                del self._feed.leftovers[path]
