"""Which resources a process holds, and how often: its entries among a resource's references.

However many references a process has to a resource, there is one entry for them in the tree, which
ends with the process' session. It is made for the first and deleted with the last; that deletion is
part of what decides who was the last of all, so it is left to those who use this. Taking a further
reference costs no request; that part may be called from any thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import anyio

from moat_kv import errors
from moat_kv.client import claiming
from moat_kv.coord import line, resource
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.coord.aio.process import Process


class Holding:
    """One process' hold on one resource."""

    def __init__(self, name: str | Path, base: Path, key: str) -> None:
        self.name = name
        #: Where the things of the resource live.
        self.base = base
        #: Of its entry, and not used by any other, also not by this process' next hold.
        self.key = key
        self.count = 1
        self.registered = False
        #: Set when it was registered, or could not be; made in the event loop.
        self.tried: anyio.Event | None = None

    @property
    def path(self) -> Path:
        """Its entry among the references."""
        return self.base / resource.REFERENCES / self.key


class Holdings:
    """All of a process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._mutex = threading.Lock()
        self._of: dict[str | Path, Holding] = {}

    def __len__(self) -> int:
        return len(self._of)

    def join(self, name: str | Path) -> Holding | None:
        """One more for a resource that the process holds already; None if it does not."""
        with self._mutex:
            holding = self._of.get(name)
            if holding is None or not holding.registered:
                return None
            holding.count += 1
            return holding

    async def enter(self, name: str | Path) -> Holding:
        """One more, registered in the tree if it is the first. Raises Detached, Disconnected."""
        while True:
            with self._mutex:
                holding = self._of.get(name)
                if holding is None:
                    holding = Holding(name, self._process.path_of(name), self._process.new_key())
                    holding.tried = anyio.Event()
                    self._of[name] = holding
                    break
                if holding.registered:
                    holding.count += 1
                    return holding
            assert holding.tried is not None
            await holding.tried.wait()
        try:
            await self.register(holding)
        except BaseException:
            with self._mutex:
                del self._of[name]
            # The request may be on its way, and nobody would know of the entry.
            self._delete_soon(holding)
            raise
        finally:
            holding.tried.set()
        return holding

    def leave(self, holding: Holding) -> bool:
        """One less; whether it was the last of this process, so that the entry is to be deleted."""
        with self._mutex:
            holding.count -= 1
            if holding.count:
                return False
            if self._of.get(holding.name) is holding:
                del self._of[holding.name]
            return True

    def leave_soon(self, holding: Holding) -> None:
        """`leave`, with the entry deleted in the background if it was the last. From any thread."""
        process = self._process
        if self.leave(holding):
            process.call_soon(lambda: self._delete_soon(holding))

    def _delete_soon(self, holding: Holding) -> None:
        at = line.Line(self._process.client, holding.base / resource.REFERENCES)
        self._process.leave_soon(at, claiming.Claim(holding.path, 0))

    def rejoin(self, holding: Holding) -> None:
        """It did not leave after all; its entry is still there."""
        with self._mutex:
            holding.count += 1
            # Somebody may have begun anew meanwhile; then there are two entries of this process.
            self._of.setdefault(holding.name, holding)

    async def register(self, holding: Holding) -> None:
        """Write the entry, in the present session."""
        client = self._process.client
        facts = {"process": self._process.id, "client": client.name}

        async def ask() -> None:
            while True:
                session = await self._process.live_session()
                try:
                    await client.set(holding.path, facts, session=session)
                except errors.SessionExpired:
                    await session.doubt()
                    continue
                # From now on `renew` sees to it, if that session was not lost before the answer.
                holding.registered = True
                if not session.ended:
                    return

        await claiming.patiently(client, ask, claiming.BREAKS)

    async def renew(self) -> None:
        """Write all entries anew: there is another session."""
        with self._mutex:
            present = [each for each in self._of.values() if each.registered]
        for holding in present:
            if self._of.get(holding.name) is holding:
                await self.register(holding)
            if self._of.get(holding.name) is not holding:
                # It was left meanwhile, perhaps before it was written.
                await self._process.client.delete(holding.path, strict=True)
