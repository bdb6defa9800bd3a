"""Barriers: so many processes go on together, again and again.

Each that arrives stands in a line. Whoever sees that enough do lets the first so many pass, all at
once in one batch that holds only while each of them still stands there, so one that died meanwhile
is not counted.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from moat_kv import errors
from moat_kv.client import claiming, results
from moat_kv.coord import line, resource, rules
from moat_kv.coord.aio import lock
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.coord.aio.process import Process

logger = logging.getLogger(__name__)

#: A batch lets all of them pass, and each of its writes has a guard.
PARTIES_LIMIT = 499


class Barrier:
    """`await process.barrier("start", 3).wait()` returns when three have called it.

    The next three are the next round. All have to name the same number.
    """

    def __init__(
        self, process: Process, name: str | Path, parties: int, *, timeout_s: float
    ) -> None:
        if not 1 <= parties <= PARTIES_LIMIT:
            raise ValueError(f"a barrier is for 1 to {PARTIES_LIMIT} parties, not {parties}")
        self._process = process
        self._client = process.client
        self._base = process.path_of(name)
        self._line = line.Line(self._client, self._base / resource.LINE)
        self.name = resource.name_of(name)
        self.parties = parties
        #: How long `wait` waits unless told otherwise, in seconds.
        self.timeout_s = timeout_s

    async def wait(self, timeout_s: float | None = None) -> int:
        """Wait until enough are here; this one's place among them, from 0.

        Raises TimeoutError; whoever comes after that has to find others.
        """
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        tickets: dict[Path, rules.Ticket] = {}
        with anyio.move_on_after(limit_s):
            while True:
                standing = await lock.stand(self._process, self._line, {"kind": "party"})
                index: int | None = None
                try:
                    index = await self._pass(standing.claim, tickets)
                finally:
                    if index is None:
                        self._process.leave_soon(self._line, standing.claim)
                if index is not None:
                    return index
        here = len(tickets)
        raise TimeoutError(f"{self.name}: {here} of {self.parties} came within {limit_s:g} s")

    async def _pass(self, claim: claiming.Claim, tickets: dict[Path, rules.Ticket]) -> int | None:
        """The place among those that pass; None if the ticket was lost with its session."""
        passed: dict[str, int] = {}
        ready = False
        key = str(claim.path[-1])
        watched = self._client.watch(self._base, fetch=True, min_depth=2, max_depth=2)
        async with watched as changes:
            async for event in changes:
                if isinstance(event, results.Reset):
                    tickets.clear()
                    passed.clear()
                    ready = False
                elif isinstance(event, results.Ready):
                    ready = True
                elif isinstance(event, results.WatchEvent):
                    self._note(event, tickets, passed)
                if not ready:
                    continue
                if key in passed:
                    await self._leave(claim, tickets, passed)
                    return passed[key]
                if claim.path not in tickets:
                    return None
                await self._let_pass(claim, tickets, passed)
        raise AssertionError("a watch ends with an error or never")

    def _note(
        self, event: results.WatchEvent, tickets: dict[Path, rules.Ticket], passed: dict[str, int]
    ) -> None:
        kind = event.path[-2]
        if kind == resource.LINE:
            line.note(tickets, event)
        elif kind == resource.PASSED:
            if "value" in event:
                passed[str(event.path[-1])] = event.value
            else:
                passed.pop(str(event.path[-1]), None)

    async def _let_pass(
        self, claim: claiming.Claim, tickets: dict[Path, rules.Ticket], passed: dict[str, int]
    ) -> None:
        waiting = sorted(
            (each for each in tickets.values() if each.path[-1] not in passed),
            key=lambda ticket: ticket.rev,
        )
        first = waiting[: self.parties]
        if len(first) < self.parties or all(each.rev != claim.fence for each in first):
            return
        place = self._base / resource.PASSED
        ops = [
            self._client.op_set(place / each.path[-1], index, expect=0, guard=(each.path, each.rev))
            for index, each in enumerate(first)
        ]
        try:
            await self._client.batch(ops)
        except (errors.Conflict, errors.GuardFailed, *claiming.BREAKS) as exc:
            # Somebody else was faster, or one has gone; the watch will tell.
            logger.debug("barrier %s: %s", self.name, exc)

    async def _leave(
        self, claim: claiming.Claim, tickets: dict[Path, rules.Ticket], passed: dict[str, int]
    ) -> None:
        """Tidy up, also after those that died when they had passed."""
        place = self._base / resource.PASSED
        standing = {str(each.path[-1]) for each in tickets.values()}
        gone = [key for key in passed if key not in standing]

        async def ask() -> None:
            ops = [self._client.op_delete(place / key) for key in [str(claim.path[-1]), *gone]]
            await self._client.batch([*ops, self._client.op_delete(claim.path)])

        await claiming.patiently(self._client, ask)
