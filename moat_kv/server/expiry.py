"""Entries that end by themselves: the server writes their tombstones when their time has come.

Told of each such record by the store; judged by compare-and-set, so that an entry that was
written anew in the meantime stays. Where several servers share the tree, the one that took the
write has its turn first, and any other one some seconds later.
"""

from __future__ import annotations

import heapq
import logging
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from moat_kv import errors
from moat_kv.engine.base import Outcome
from moat_kv.entry import Record, Write
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.server.server import Server

logger = logging.getLogger(__name__)

#: The clock is looked at at least this often, in seconds: it may be set while we sleep.
LOOK_S = 1.0
#: After a write that could not be stored it is tried again, in seconds.
RETRY_S = 1.0
#: So many that end at the same time are looked at before others have their turn.
SLICE = 200
#: So many times that may have passed over (their entries were written anew) are kept at least.
STALE_LIMIT = 1_000


class Expiry:
    """Knows which entry ends next."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._due: list[tuple[float, int, Path]] = []
        self._sooner = anyio.Event()

    def add(self, record: Record) -> None:
        self._push(self._due_at(record), record.rev, record.path)
        bound = self._server.store.tree.bound
        if len(self._due) > STALE_LIMIT + 2 * len(bound):
            # An entry that is renewed long before its time would otherwise leave all these times.
            self.begin_anew()

    def begin_anew(self) -> None:
        """Take what there is in the tree, and nothing else."""
        self._due = [
            (self._due_at(one), one.rev, path)
            for path, one in self._server.store.tree.bound.items()
            if one.expires_at is not None
        ]
        heapq.heapify(self._due)
        self._sooner.set()

    def _due_at(self, record: Record) -> float:
        """When it is this server's turn to delete it; first that of the one that wrote it."""
        assert record.expires_at is not None
        server = self._server
        if server.engine.shared and record.origin != server.origin:
            return record.expires_at + server.times.leave_s
        return record.expires_at

    def _push(self, due_at: float, rev: int, path: Path) -> None:
        heapq.heappush(self._due, (due_at, rev, path))
        if self._due[0][1] == rev:
            self._sooner.set()

    async def run(self) -> None:
        """Write the tombstones, for as long as the server lives."""
        while True:
            self._sooner = anyio.Event()
            # Before it is in touch the engine may not know the time, and nothing can be written.
            attached = self._server.engine.attached
            now = self._server.now()
            expired = 0
            while attached and self._due and self._due[0][0] <= now:
                _at, rev, path = heapq.heappop(self._due)
                self._expire(rev, path)
                expired += 1
                if expired % SLICE == 0:
                    await anyio.lowlevel.checkpoint()
            # Nobody is woken for nothing: without such entries this sleeps until there is one.
            wait_s = None
            if self._due:
                wait_s = min(LOOK_S, self._due[0][0] - now) if attached else LOOK_S
            with anyio.move_on_after(wait_s):
                await self._sooner.wait()

    def _expire(self, rev: int, path: Path) -> None:
        server = self._server
        node = server.store.tree.head(path)
        if node is None or node.rev != rev or node.value is None:
            return
        write = Write(path, None, origin=server.origin, tick=server.next_tick(), expect=rev)

        def done(outcome: Outcome) -> None:
            if isinstance(outcome, errors.MoatKvError) and not isinstance(outcome, errors.Conflict):
                logger.warning("%s should have ended, tried again: %s", path, outcome)
                self._push(server.now() + RETRY_S, rev, path)

        server.submit((write,), done)
