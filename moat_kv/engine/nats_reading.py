"""Reads what the log keeps: a path's history, all records since a revision.

`engine.nats` asks. A path is read from any node's copy (`nats_direct`), much by a consumer
(`nats_consumer`). Applies nothing; deletions that are forgotten are left out.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import anyio

from moat_kv import errors
from moat_kv.engine import (
    base,
    nats_connection,
    nats_consumer,
    nats_direct,
    nats_feed,
    nats_record,
    nats_subjects,
)
from moat_kv.entry import Record
from moat_kv.path import Path

#: A node's copy that is behind for longer is not asked again for a path's history, in seconds.
STALE_S = 1.0


class Reading:
    """`connected`: the present connection, waited for; it raises Detached."""

    def __init__(
        self,
        names: nats_subjects.Names,
        replica: base.Replica,
        feed: nats_feed.Feed,
        *,
        connected: Callable[[], Awaitable[nats_connection.Connection]],
        patience_s: float,
    ) -> None:
        self._names = names
        self._replica = replica
        self._feed = feed
        self._connected = connected
        self._patience_s = patience_s

    async def history(self, path: Path, *, limit: int, before: int | None = None) -> list[Record]:
        """See `base.Engine.history`. Raises Detached."""
        subject = self._names.subject(path)
        began, pause_s = time.monotonic(), 0.02
        while True:
            head = self._replica.head(path)
            if head is None:
                return []
            # A node's copy may be behind the one that we follow: for a moment, or, after an outage,
            # for long. Another one is asked then, and what is not all is no answer.
            waited_s = time.monotonic() - began
            if waited_s < STALE_S:
                found = await self._read_path(subject)
            else:
                found = [record async for some in self._read([subject], 0) for record in some]
            if found and found[-1].rev >= head.rev:
                break
            if waited_s > self._patience_s:
                raise errors.Detached("no NATS node that answers has all of it yet")
            await anyio.sleep(pause_s)
            pause_s = min(0.5, 2 * pause_s)
        wanted = [record for record in found if before is None or record.rev < before]
        return wanted[::-1][:limit]

    async def records(self, since: int) -> AsyncIterator[Sequence[Record]]:
        """See `base.Engine.records`. Raises Detached."""
        async for some in self._read(self._names.followed, since):
            if some:
                yield some

    async def _read_path(self, subject: str) -> list[Record]:
        connection = await self._connected()
        try:
            items = await nats_direct.read(connection, self._names, subject)
        except nats_connection.NoAnswer as exc:
            raise errors.Detached(str(exc)) from exc
        return self._kept(items)

    def _kept(self, items: Sequence[nats_consumer.Item]) -> list[Record]:
        """The records that are not forgotten."""
        records = [item.record for item in items if isinstance(item, nats_record.Delivered)]
        floor = self._feed.floor
        return [each for each in records if each.value is not None or each.rev > floor]

    async def _read(self, subjects: Sequence[str], since: int) -> AsyncIterator[list[Record]]:
        connection = await self._connected()
        try:
            async for items in nats_consumer.read(connection, self._names, subjects, since):
                yield self._kept(items)
        except (nats_connection.NoAnswer, nats_connection.Refused) as exc:
            raise errors.Detached(str(exc)) from exc
