"""Electing one leader: an exclusive lock whose holder says something about itself.

Who campaigns stands in a line; the first in it leads, until it resigns or its session ends.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from moat_kv.client import results
from moat_kv.coord import line, rules
from moat_kv.coord.aio import lock
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.coord.aio.process import Process


class Leader(NamedTuple):
    """Who leads now."""

    value: Any
    """What it gave when it began to campaign."""
    fence: int
    """The number of its leadership; a later one's is higher."""
    client: str
    """The name of its client."""


def leader_of(tickets: Sequence[rules.Ticket]) -> Leader | None:
    """The first in the line; None if nobody stands there."""
    if not tickets:
        return None
    first = min(tickets, key=lambda ticket: ticket.rev)
    return Leader(first.facts.get("value"), first.rev, first.holder)


class Election(lock.Lock):
    """`async with process.election("boss", value) as lead: ...` leads while the block runs.

    A lock in all else: `fence`, `guard`, `lost`, `guarded()`; `campaign` and `resign` are other
    names for `acquire` and `release`.
    """

    def __init__(self, process: Process, name: str | Path, *, value: Any, timeout_s: float) -> None:
        super().__init__(process, name, mode=rules.Mode(), timeout_s=timeout_s, value=value)

    campaign = lock.Lock.acquire
    resign = lock.Lock.release

    async def leader(self) -> Leader | None:
        """Who leads now, as the server has it; None if nobody does."""
        return leader_of(await self._line.read())

    async def leaders(self) -> AsyncGenerator[Leader | None, None]:
        """Who leads now, then each change; those that lasted too short to be seen are left out.

        Whoever leaves the loop early closes it: `async with aclosing(election.leaders()) as seen`.
        """
        tickets: dict[Path, rules.Ticket] = {}
        told: Leader | None = None
        ready = first = False
        place = self._line.place
        async with self._process.client.watch(
            place, fetch=True, min_depth=1, max_depth=1
        ) as changes:
            async for event in changes:
                if isinstance(event, results.Reset):
                    tickets.clear()
                    ready = False
                elif isinstance(event, results.Ready):
                    ready = True
                elif isinstance(event, results.WatchEvent):
                    line.note(tickets, event)
                now = leader_of(list(tickets.values()))
                if ready and (now != told or not first):
                    told, first = now, True
                    yield now
