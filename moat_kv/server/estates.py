"""Sessions of other servers: adopted when their client comes, ended when nobody has them any more.

Knows all records of sessions in the tree, told by the store. A session is somebody's while the
server that its record names has its lease (`leases`). After that it has its time to live to come
to another server, which adopts it by compare-and-set of its record; then any server ends it, by
compare-and-set again, guarded by the lease that is over. So of all that try one wins, and a server
that was only cut off is never overruled. Nothing is judged while this server is cut off itself.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import anyio

from moat_kv import codec, errors
from moat_kv.engine.base import Outcome
from moat_kv.entry import Head, Record, Write
from moat_kv.path import Path
from moat_kv.server.session import PLACE, Session, fits

if TYPE_CHECKING:
    from moat_kv.server.connection import Connection
    from moat_kv.server.server import Server

logger = logging.getLogger(__name__)

#: How often a session is tried for that others adopt at the same time.
TRIES = 5
#: A sweep that comes later than this was held up, in seconds; so may be what others wrote.
HELD_UP_S = 0.3


class Facts(NamedTuple):
    """What a session's record says."""

    rev: int
    owner: str
    """`node:incarnation` of the server that has it."""
    secret_hash: str
    ttl_s: float
    grace_s: float
    client: str


class _Turn:
    """Who adopts one session here, one after the other."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.waiting = 0


class Estates:
    """The records of all sessions, where several servers share the tree."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._known: dict[str, Facts] = {}
        # Since when each has been nobody's, as far as is known here.
        self._since: dict[str, float] = {}
        # Since when there are entries of sessions that have no record.
        self._strays: dict[str, float] = {}
        # Being adopted here, being ended here.
        self._adopting: dict[str, _Turn] = {}
        self._ending: set[str] = set()

    # What the log says --------------------------------------------------------------------------

    def applied(self, record: Record) -> None:
        """A record below `PLACE` was applied."""
        id = str(record.path[-1])
        if record.value is None:
            self._known.pop(id, None)
            self._since.pop(id, None)
            self._server.sessions.seen(id, "", 0)
        else:
            facts = _facts(record)
            self._known[id] = facts
            self._since.pop(id, None)
            self._server.sessions.seen(id, facts.owner, facts.rev)

    def begin_anew(self) -> None:
        """The tree is another one."""
        before = set(self._known)
        self._known.clear()
        self._since.clear()
        self._strays.clear()
        place = self._server.store.tree.find(PLACE)
        for key, node in list((place.children or {}).items()) if place is not None else []:
            if node.value is not None:
                self._known[str(key)] = _facts(node)
        for id, facts in self._known.items():
            self._server.sessions.seen(id, facts.owner, facts.rev)
        for id in before - set(self._known):
            self._server.sessions.seen(id, "", 0)

    def touched(self) -> None:
        """The network is out of reach, or in reach again: all time counts from now."""
        self._since.clear()
        self._strays.clear()

    # Adopting -----------------------------------------------------------------------------------

    async def adopt(self, connection: Connection, id: str, secret: str) -> Session:
        """Go on with a session that another server had. Strict.

        Raises SessionExpired, also for a wrong secret; Detached; Unknown.
        """
        server = self._server
        if id not in self._known:
            await server.engine.catch_up()
        turn = self._adopting.setdefault(id, _Turn())
        turn.waiting += 1
        try:
            # One after the other: lines of one server would overtake each other.
            async with turn.lock:
                return await self._adopt(connection, id, secret)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._adopting[id]

    async def _adopt(self, connection: Connection, id: str, secret: str) -> Session:
        server = self._server
        for _ in range(TRIES):
            if id in server.sessions:
                return server.sessions.resume(connection, id, secret)
            facts = self._known.get(id)
            if facts is None or not fits(facts.secret_hash, secret):
                raise errors.SessionExpired(id)
            server.leases.need()
            outcome = await self._write(id, self._record(facts), facts.rev)
            if not isinstance(outcome, errors.MoatKvError):
                return self._adopted(connection, id, facts, outcome[0].rev)
            if not isinstance(outcome, errors.Conflict):
                raise outcome
        raise errors.Unknown("others resume this session at the same time")

    def _adopted(self, connection: Connection, id: str, facts: Facts, rev: int) -> Session:
        session = Session(id, facts.secret_hash, facts.ttl_s, facts.grace_s)
        session.recorded, session.rev = True, rev
        now = self._known.get(id)
        if now is None or now.rev > rev:
            # It is gone again already, to another server.
            raise errors.SessionExpired(id)
        logger.info("session %s is here now, after server %s", id, facts.owner)
        self._server.sessions.adopt(connection, session)
        return session

    def _record(self, facts: Facts) -> bytes:
        kept = facts._asdict()
        del kept["rev"]
        return codec.pack({**kept, "owner": self._server.origin})

    async def _write(self, id: str, value: bytes, rev: int) -> Outcome:
        outcomes: list[Outcome] = []
        finished = anyio.Event()

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            finished.set()

        self._server.submit((self._made(PLACE / id, value, rev),), done)
        await finished.wait()
        return outcomes[0]

    def _made(self, path: Path, value: bytes | None, rev: int) -> Write:
        server = self._server
        return Write(
            path, value, origin=server.origin, tick=server.next_tick(), expect=rev, strict=True
        )

    # Ending -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """End what is nobody's, for as long as the server lives."""
        server, sweep_s = self._server, self._server.times.sweep_s
        while server.engine.shared:
            began = anyio.current_time()
            await anyio.sleep(sweep_s)
            late_s = anyio.current_time() - began - sweep_s
            if late_s > HELD_UP_S:
                self.give_back(late_s)
                server.leases.give_back(late_s)
            elif server.engine.attached and server.leases.held:
                self.sweep()

    def give_back(self, lost_s: float) -> None:
        for times in (self._since, self._strays):
            for id in times:
                times[id] += lost_s

    def sweep(self) -> None:
        """Look at all sessions once. To be called only while in touch."""
        now = anyio.current_time()
        for id, facts in list(self._known.items()):
            wait_s = self._wait_s(id, facts)
            if wait_s is None:
                self._since.pop(id, None)
            elif now - self._since.setdefault(id, now) >= wait_s and id not in self._ending:
                self._end(id, facts)
        owners = self._server.store.session_entries
        for id in self._strays.keys() - owners.keys():
            del self._strays[id]
        for id in [id for id in owners if id not in self._known and id not in self._ending]:
            if now - self._strays.setdefault(id, now) >= self._server.times.leave_s:
                self._strays[id] = now
                self._server.sessions.sweep_entries(id)

    def _wait_s(self, id: str, facts: Facts) -> float | None:
        """How long a session that is nobody's is left alone, in seconds; None: it is somebody's."""
        server = self._server
        if facts.owner != server.origin:
            return facts.ttl_s if server.leases.is_over(facts.owner) else None
        if id in server.sessions or id in self._adopting:
            return None
        # Its client was told that it has ended; or its adoption got no answer.
        return 0.0 if id in server.sessions.given_up else facts.ttl_s

    def _end(self, id: str, facts: Facts) -> None:
        server = self._server
        write = self._made(PLACE / id, None, facts.rev)
        if facts.owner != server.origin:
            write.guards = server.leases.guards(facts.owner)
        self._ending.add(id)

        def done(outcome: Outcome) -> None:
            self._ending.discard(id)
            if isinstance(outcome, errors.MoatKvError):
                # It was adopted, its server is back, or another one was faster; else once more.
                logger.debug("session %s is not ended here: %s", id, outcome)
                return
            server.sessions.given_up.discard(id)
            logger.info("session %s has ended: server %s did not keep it", id, facts.owner)
            server.sessions.sweep_entries(id)

        server.submit((write,), done)


def _facts(head: Head) -> Facts:
    assert head.value is not None
    facts = codec.unpack(head.value)
    return Facts(
        head.rev,
        facts.get("owner", ""),
        facts["secret_hash"],
        float(facts["ttl_s"]),
        float(facts["grace_s"]),
        facts.get("client", ""),
    )
