"""The line at a resource: entering it, looking at it, waiting for others to leave, leaving.

Locks, semaphores, elections and barriers stand on this. A ticket is a claim (`client.claiming`) at
a path of its own, so leaving can never touch anybody else's. All calls go to the server; what was
read is not kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from moat_kv.client import claiming, results
from moat_kv.client.client import Client
from moat_kv.client.session import Session
from moat_kv.coord import rules
from moat_kv.path import Path


class Line:
    """Those who stand in line at one place."""

    def __init__(self, client: Client, place: Path) -> None:
        self._client = client
        self.place = place

    async def enter(
        self, key: str, facts: Mapping[str, Any], session: Session
    ) -> claiming.Claim | None:
        """Stand at the end; None if the key is taken. Raises SessionExpired, Detached."""
        return await claiming.take(
            self._client, self.place / key, facts, session=session, passing=claiming.BREAKS
        )

    async def read(self) -> list[rules.Ticket]:
        """All that stand here now, in their order."""
        found = self._client.get_tree(self.place, min_depth=1, max_depth=1)
        tickets = []
        async for row in found:
            facts = row.value if isinstance(row.value, Mapping) else {}
            tickets.append(rules.Ticket(row.rev, self.place + row.path, facts))
        tickets.sort(key=lambda ticket: ticket.rev)
        return tickets

    async def leave(self, claim: claiming.Claim) -> None:
        """Stand here no more. Once is enough; nobody else is touched.

        A claim with fence 0 is one of which is not known whether it was made.
        """
        if claim.fence:
            await claiming.release(self._client, claim)
        else:
            await claiming.patiently(
                self._client, lambda: self._client.delete(claim.path, strict=True)
            )

    async def one_gone(self, tickets: Collection[rules.Ticket]) -> None:
        """Until one of these has left."""
        paths = {each.path for each in tickets}
        if len(paths) == 1:
            await gone(self._client, next(iter(paths)), paths, depth=0)
        else:
            await gone(self._client, self.place, paths, depth=1)


def note(tickets: dict[Path, rules.Ticket], event: results.WatchEvent) -> None:
    """Keep the tickets of a line that is watched."""
    if "value" in event:
        facts = event.value if isinstance(event.value, Mapping) else {}
        tickets[event.path] = rules.Ticket(event.rev, event.path, facts)
    else:
        tickets.pop(event.path, None)


async def gone(client: Client, place: Path, paths: Collection[Path], *, depth: int) -> None:
    """Until one of these entries is not there; they lie so deep below `place`."""
    seen: set[Path] = set()
    async with client.watch(place, fetch=True, min_depth=depth, max_depth=depth) as changes:
        async for event in changes:
            if isinstance(event, results.Ready):
                if not seen.issuperset(paths):
                    return
            elif isinstance(event, results.Reset):
                seen.clear()
            elif isinstance(event, results.WatchEvent) and event.path in paths:
                if "value" not in event:
                    return
                seen.add(event.path)
