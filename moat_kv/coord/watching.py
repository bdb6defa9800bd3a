"""Finding what there is to see to: what failed here, and what dead processes have left.

Lives in the client's event loop; `recovery` asks it for the next work, and does that. Processes
that have updates are members of one group, so each sees when another is gone, and looks then; else
it looks seldom. Nothing is changed here.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from typing import TYPE_CHECKING, NamedTuple

import anyio

from moat_kv import errors
from moat_kv.client import claiming
from moat_kv.coord import resource, stock
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.coord.aio.process import Process
    from moat_kv.coord.course import Course
    from moat_kv.coord.updating import Host, UpdateLogic

logger = logging.getLogger(__name__)

#: How often one looks for what others left, if nobody is seen to have gone, in seconds.
LOOK_S = 60.0
#: How soon one looks again when something was in doubt, in seconds; twice as long each time.
AGAIN_S = 1.0
#: The group, below the place of groups.
GROUP = "coord"


class Work(NamedTuple):
    """What is to be done next."""

    failed: list[Course]
    """Of this process, whose time has come."""
    orphans: list[str | Path]
    """Resources for which something waits and nobody is left."""


class Watching:
    """What one process sees."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._look_at = 0.0
        self._again_s = AGAIN_S
        self._news = anyio.Event()
        self._met = anyio.Event()
        self._stopping = False
        #: The kinds of updates that this process can execute, by name.
        self.kinds: dict[str, type[UpdateLogic]] = {}
        #: Processes that live, this one among them.
        self.live = {process.id}
        #: The process as its updates know it.
        self.host: Host

    @property
    def group(self) -> Path:
        return self._process.places.group / GROUP

    def know(self, host: Host, kind: type[UpdateLogic]) -> bool:
        """This process has updates of that kind; whether they are the first. From any thread."""
        if self.kinds.get(kind.kind) is kind:
            return False
        is_first = not self.kinds
        self.host = host
        self.kinds[kind.kind] = kind
        self._look_at = 0.0
        if is_first:
            self._process.call_soon(self._begin)
        self.tell()
        return is_first

    def _begin(self) -> None:
        self._process.tasks.start_soon(self._attend)
        self._process.tasks.start_soon(self._meet)

    def tell(self) -> None:
        """There may be something to do. From any thread."""
        self._process.call_soon(lambda: self._news.set())

    def look_again(self) -> None:
        """Something was left undone. From any thread."""
        self._look_at = min(self._look_at, time.monotonic() + self._again_s)
        self.tell()

    def stop(self) -> None:
        """There is nothing to do any more."""
        self._stopping = True
        self._news.set()
        self._met.set()

    # The others ---------------------------------------------------------------------------------

    async def _attend(self) -> None:
        """Be a member, in each session anew."""
        process = self._process
        while not process.stopped:
            try:
                session = await process.live_session()
            except errors.SessionExpired:
                return  # the process was stopped
            join = functools.partial(process.client.join, self.group, process.id, session=session)
            try:
                await claiming.patiently(process.client, join)
            except errors.SessionExpired:
                await session.doubt()
                continue
            except errors.NameTaken:
                # By the session before this one, which the server has not ended yet.
                await anyio.sleep(AGAIN_S)
                continue
            await session.lost.wait()

    async def _meet(self) -> None:
        async with self._process.client.watch_group(self.group) as states:
            async for members in states:
                if members is None:
                    continue
                before, self.live = self.live, {*members, self._process.id}
                self._met.set()
                if before - self.live:
                    self._again_s = AGAIN_S
                    self._look_at = 0.0
                    self._news.set()

    # What there is to do ------------------------------------------------------------------------

    async def next(self) -> Work | None:
        """Wait until there is something to do; None when the process stops."""
        await self._met.wait()
        while not self._stopping:
            self._news = anyio.Event()
            failed = self._process.unsettled.take_due()
            orphans: list[str | Path] = []
            if time.monotonic() >= self._look_at:
                orphans = await self._look()
            if failed or orphans:
                return Work(failed, orphans)
            with anyio.move_on_after(self._quiet_s()):
                await self._news.wait()
        return None

    def _quiet_s(self) -> float:
        until_look_s = max(0.0, self._look_at - time.monotonic())
        until_due_s = self._process.unsettled.next_s()
        return until_look_s if until_due_s is None else min(until_look_s, until_due_s)

    async def _look(self) -> list[str | Path]:
        """Everything that waits in vain, of the kinds that are known here; in any order."""
        self._look_at = time.monotonic() + LOOK_S * random.uniform(0.8, 1.2)
        try:
            found = await self._stocks()
        except errors.MoatKvError as exc:
            logger.info("cannot look for what was left: %s", exc)
            self._doubt()
            return []
        orphans = []
        in_doubt = False
        for name, each in found.items():
            todos, parts = each.orphaned(self.live)
            kinds = {todo.kind for todo in todos} | {part.kind for part in parts}
            if kinds & self.kinds.keys():
                orphans.append(name)
            in_doubt = in_doubt or each.doubtful(self.live)
        if in_doubt:
            self._doubt()
        else:
            self._again_s = AGAIN_S
        # Others see the same, and need not all begin with the same one.
        random.shuffle(orphans)
        return orphans

    def _doubt(self) -> None:
        self._look_at = min(self._look_at, time.monotonic() + self._again_s)
        self._again_s = min(self._again_s * 2, LOOK_S)

    async def _stocks(self) -> dict[str | Path, stock.Stock]:
        """What there is of all resources."""
        found: dict[str | Path, stock.Stock] = {}
        place = self._process.places.lock
        async for row in self._process.client.get_tree(place, min_depth=2):
            depth = next((i for i, each in enumerate(row.path) if each in resource.RESERVED), None)
            if not depth:
                continue
            name = row.path[0] if depth == 1 else row.path[:depth]
            if isinstance(name, str | Path):
                stock.note(found.setdefault(name, stock.Stock()), row.path[depth:], row)
        return found
