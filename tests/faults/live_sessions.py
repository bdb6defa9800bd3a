"""A live session at each server of a network, while fault commands cut servers off from each other.

Each has an entry that ends with it. Whoever cuts asks here whether all entries are still shown
(`missing_at`), and afterwards which sessions have ended (`ended`). A session may end only because
its own server was cut off for as long as its lease holds; nobody else may end it before that. What
was looked for in vain is for the caller to judge.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio

from moat_kv import Client, P, errors, open_client
from moat_kv.client import session as session_module
from moat_kv.path import Path
from moat_kv.server.times import DEFAULT_TIMES
from tests.faults import network_box
from tests.faults.network_box import Box

PLACE = P("live")
#: A server that was cut off for less has its lease still, in seconds.
HOLDS_S = DEFAULT_TIMES.lease_s - DEFAULT_TIMES.renew_s - 1.0
#: Whose server has died goes on elsewhere, or there again, if that is soon enough, in seconds.
GRACE_S = session_module.GIVE_UP * DEFAULT_TIMES.grace_s
#: Nobody ends what a server had that is away for less than this, in seconds.
KEPT_S = DEFAULT_TIMES.lease_s + DEFAULT_TIMES.ttl_s - DEFAULT_TIMES.renew_s - 1.0
#: A server that is in touch again has a lease again, or tells that a session is over, by then.
BACK_S = 30.0
_LOOK_S = 0.2
#: What a server says in its log of a session that was ended while it had it.
_ENDED_ELSEWHERE = "not here any more: it was ended by another server"


class LiveSessions:
    """Made by `kept`. One session at each server at a time, and its client's entry."""

    def __init__(self, box: Box, clients: list[Client], stack: AsyncExitStack) -> None:
        self._box = box
        self._stack = stack
        self._clients = dict(zip(box.servers, clients, strict=True))
        self._sessions: dict[str, session_module.Session] = {}
        self._count = 0

    @property
    def opened(self) -> int:
        """How many there have been."""
        return self._count

    async def open(self, server: str) -> None:
        """A new one at that server. Raises TimeoutError if that gets no lease for too long."""
        client = self._clients[server]
        with anyio.fail_after(BACK_S):
            while (session := await self._opened(client)) is None:
                await anyio.sleep(_LOOK_S)
        self._count += 1
        self._sessions[server] = session
        await self._write(server)

    async def _opened(self, client: Client) -> session_module.Session | None:
        """None while its server cannot have any."""
        try:
            return await self._stack.enter_async_context(client.session())
        except (errors.Detached, errors.Unknown, errors.Disconnected):
            return None

    def _path(self, server: str) -> Path:
        return PLACE / server / self._sessions[server].id

    async def _write(self, server: str) -> None:
        """Raises SessionExpired; TimeoutError if its server has no lease for too long."""
        with anyio.fail_after(BACK_S):
            while True:
                try:
                    await self._clients[server].set(
                        self._path(server), self._count, session=self._sessions[server]
                    )
                except (errors.Detached, errors.Unknown, errors.Disconnected):
                    # (While its server is cut off a broken line is not mended: nor the session.)
                    await anyio.sleep(_LOOK_S)
                else:
                    return

    async def missing_at(self, server: str) -> list[str]:
        """The servers whose session's entry that server does not show."""
        async with open_client(self._box.url(server), wait=True) as client:
            shown = {PLACE + row.path async for row in client.get_tree(PLACE)}
        return [other for other in self._sessions if self._path(other) not in shown]

    async def until_shown(self) -> None:
        """Wait until every server shows all entries. Raises TimeoutError."""
        with anyio.fail_after(BACK_S):
            for server in self._box.servers:
                while await self.missing_at(server):
                    await anyio.sleep(_LOOK_S)

    async def ended(self) -> list[str]:
        """The servers whose session has ended; each gets a new one. To be asked when all is whole.

        Raises TimeoutError if a server gets no lease.
        """
        found = []
        for server in self._box.servers:
            try:
                await self._write(server)
            except errors.SessionExpired:
                found.append(server)
                await self.open(server)
        return found

    async def end_by_another(self, server: str, *, at: str) -> None:
        """End that server's through another one, as nobody may who does not know its secret."""
        session = self._sessions[server]
        other = self._clients[at]
        for action, words in (
            ("session_resume", {"session": session.id, "secret": session._secret}),
            ("session_close", {"session": session.id}),
        ):
            await network_box.agreed(
                lambda action=action, words=words: other.request(action, words)  # type: ignore[misc]
            )

    def ended_elsewhere(self) -> list[str]:
        """What servers have said of sessions that others have ended, while they had them."""
        return [
            f"{server}: {line}"
            for server in self._box.servers
            for line in self._box.cluster.log(server).read_text(errors="replace").splitlines()
            if _ENDED_ELSEWHERE in line
        ]

    async def leftovers(self, limit_s: float) -> list[Path]:
        """Entries of sessions that have ended, if they are not gone within that time."""
        live = {self._path(server) for server in self._sessions}
        left: list[Path] = []
        with anyio.move_on_after(limit_s):
            async with open_client(self._box.urls[0], wait=True) as client:
                while True:
                    shown = [PLACE + row.path async for row in client.get_tree(PLACE)]
                    left = [path for path in shown if path not in live]
                    if not left:
                        return []
                    await anyio.sleep(_LOOK_S)
        return left


@contextlib.asynccontextmanager
async def kept(box: Box) -> AsyncIterator[LiveSessions]:
    """One at each server, until left; all servers are in touch."""
    async with network_box.clients_of(box) as clients, AsyncExitStack() as stack:
        live = LiveSessions(box, clients, stack)
        for server in box.servers:
            await live.open(server)
        yield live
