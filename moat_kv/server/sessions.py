"""Sessions: who is alive, and what ends with whom.

A session belongs to a client's line. It ends when it is closed, when its line has been broken for
the grace, or when it has been silent for its time to live. It becomes a record, below
`(None, "session")`, when it first owns an entry; every write in its name is guarded by that record,
so that nothing can be written for a session that has ended. Ending removes the record first, then
what it owned. Only monotonic time decides.

Where several servers share the tree, a session's record names the server that has it. Another one
may adopt it, and ends it if its server is gone for too long (`estates`); it is given up here when
this server's lease is over (`leases`).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from moat_kv import codec, errors
from moat_kv.engine.base import Outcome
from moat_kv.entry import EXISTS, Guard, Write
from moat_kv.path import Path
from moat_kv.server.session import PLACE, Session, fits, hash_of

if TYPE_CHECKING:
    from moat_kv.server.connection import Connection
    from moat_kv.server.server import Server

logger = logging.getLogger(__name__)

#: Defaults on one server, in seconds.
TTL_S = 10.0
GRACE_S = 2.0
#: What a client may ask for, in seconds.
TTL_RANGE_S = (0.2, 86_400.0)
#: How often overdue sessions are looked for, in seconds; an ending is late by at most this.
SWEEP_S = 0.1
#: A sweep that comes later than this was held up (a stopped process, a sleeping machine); the
#: clients' pings may still wait in the sockets, so everybody gets the lost time back.
HELD_UP_S = 0.2
#: What could not be deleted with its session is tried again after so many seconds.
RETRY_S = 1.0
#: How many sessions one line may have; each costs memory for as long as its client asks for.
LINE_LIMIT = 1_000


class Sessions:
    """All sessions of a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._live: dict[str, Session] = {}
        # Sessions that have ended, of whose entries some could not be deleted yet.
        self._unswept: set[str] = set()
        # Those that were given up here when the lease was over; their records are to be ended.
        self.given_up: set[str] = set()
        #: Called with the id of each session that has ended.
        self.on_end: list[Callable[[str], None]] = []
        # There is one again, or what one has left.
        self._begun = anyio.Event()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, id: str) -> bool:
        return id in self._live

    @property
    def _defaults(self) -> tuple[float, float]:
        if self._server.engine.shared:
            return self._server.times.ttl_s, self._server.times.grace_s
        return TTL_S, GRACE_S

    def open(
        self, connection: Connection, ttl_s: float | None, grace_s: float | None
    ) -> tuple[Session, str]:
        """A new session on this line, and the secret that another line resumes it with."""
        default_ttl_s, default_grace_s = self._defaults
        ttl_s = default_ttl_s if ttl_s is None else float(ttl_s)
        grace_s = min(default_grace_s, ttl_s) if grace_s is None else float(grace_s)
        low, high = TTL_RANGE_S
        if not low <= ttl_s <= high:
            raise errors.BadArguments("session_open", f"ttl_s is from {low} to {high:.0f}")
        if not 0 <= grace_s <= ttl_s:
            raise errors.BadArguments("session_open", f"grace_s is from 0 to ttl_s ({ttl_s:g})")
        if len(connection.sessions) >= LINE_LIMIT:
            raise errors.BadArguments("session_open", f"more than {LINE_LIMIT} sessions on a line")
        secret = secrets.token_urlsafe(24)
        session = Session(secrets.token_hex(8), hash_of(secret), ttl_s, grace_s)
        self._live[session.id] = session
        self._bind(session, connection)
        return session, secret

    def resume(self, connection: Connection, id: str, secret: str) -> Session:
        """Go on with a session on another line. Raises SessionExpired, also for a wrong secret."""
        session = self._live.get(id)
        if session is None or not fits(session.secret_hash, secret):
            raise errors.SessionExpired(id)
        if session.connection is not None:
            # The old line is dead, though this end has not noticed yet.
            session.connection.sessions.discard(id)
        self._bind(session, connection)
        return session

    def _bind(self, session: Session, connection: Connection) -> None:
        session.connection = connection
        session.broken_at = None
        session.heard_at = anyio.current_time()
        connection.sessions.add(session.id)
        self._begun.set()

    def adopt(self, connection: Connection, session: Session) -> None:
        """A session that another server had has come to this line, which may be gone already."""
        self.given_up.discard(session.id)
        former = self._live.get(session.id)
        if former is not None and former.connection is not None:
            former.connection.sessions.discard(session.id)
        self._live[session.id] = session
        self._bind(session, connection)
        if connection not in self._server.connections:
            connection.sessions.discard(session.id)
            session.connection, session.broken_at = None, anyio.current_time()

    def of(self, connection: Connection, id: str) -> Session:
        """A live session of this line. Raises SessionExpired."""
        session = self._live.get(id)
        if session is not None and session.recorded and not self._server.leases.held:
            self._give_up(session)
            session = None
        if session is None:
            raise errors.SessionExpired(id)
        if session.connection is not connection:
            raise errors.SessionExpired(id, hint="or belongs to another line; resume it first")
        return session

    def ping(self, connection: Connection, id: str) -> None:
        self.of(connection, id).heard_at = anyio.current_time()

    def guard(self, connection: Connection, id: str) -> Guard:
        """What guards a write in a session's name; makes the session a record before its first.

        Raises SessionExpired; Detached where that cannot be now.
        """
        session = self.of(connection, id)
        self._server.leases.need()
        self.record(session)
        # Its revision changes only when another server adopts it; then nothing of here holds.
        return Guard(session.path, session.rev or EXISTS, "session")

    def record(self, session: Session) -> None:
        """Make the session a record, which outlives the server, now that it owns something.

        While the server is cut off that waits; nobody else can know of the session then.
        """
        if not session.recorded and self._server.leases.held and self._server.engine.attached:
            session.recorded = True
            facts = {
                "secret_hash": session.secret_hash,
                "ttl_s": session.ttl_s,
                "grace_s": session.grace_s,
                "client": session.connection.client_name if session.connection else "",
            }
            if self._server.engine.shared:
                facts["owner"] = self._server.origin
            write = self._write(session.path, codec.pack(facts))

            def done(outcome: Outcome) -> None:
                # The write that follows fails too then, and a later one makes the record anew.
                session.recorded = not isinstance(outcome, errors.MoatKvError)

            self._server.submit((write,), done)

    def explained(self, error: errors.MoatKvError) -> errors.MoatKvError:
        """The error that a write got; a session whose record could not be stored has not ended."""
        if not isinstance(error, errors.SessionExpired):
            return error
        session = self._live.get(error.session)
        record = None if session is None else self._server.store.tree.head(session.path)
        if session is not None and (record is None or record.value is None):
            return errors.StorageFailed("the log", "the record of the session is missing there")
        return error

    def line_broken(self, connection: Connection) -> None:
        """The client's line is gone; its sessions' grace begins."""
        now = anyio.current_time()
        for id in connection.sessions:
            session = self._live.get(id)
            if session is not None:
                session.connection = None
                session.broken_at = now

    def end(self, session: Session, reason: str) -> None:
        """End a session: its record goes, then what it owned, then its memberships."""
        if session.ended:
            return
        self._forget(session)
        logger.info("session %s has ended: %s", session.id, reason)
        if session.recorded:
            self._remove_record(session)
        for tell in self.on_end:
            tell(session.id)

    def _forget(self, session: Session) -> None:
        session.ended = True
        del self._live[session.id]
        if session.connection is not None:
            session.connection.sessions.discard(session.id)
            session.connection = None

    def drop(self, id: str, reason: str) -> None:
        """It is not this server's any more; its record and its entries are not touched."""
        session = self._live.get(id)
        if session is not None:
            self._forget(session)
            logger.info("session %s is not here any more: %s", id, reason)
            for tell in self.on_end:
                tell(id)

    def _give_up(self, session: Session) -> None:
        """The lease is over, so others may end it: before that, whoever has it is to know."""
        self.given_up.add(session.id)
        self.drop(session.id, "this server has been cut off for as long as its lease holds")

    def seen(self, id: str, owner: str, rev: int) -> None:
        """The record of a session was applied; `rev` 0: that it is gone."""
        if owner != self._server.origin:
            self.given_up.discard(id)
        session = self._live.get(id)
        if session is None or not session.recorded:
            return
        if not rev:
            self.drop(id, "it was ended by another server")
        elif owner == self._server.origin:
            session.rev = rev
        else:
            self.drop(id, f"server {owner} has it now")

    def lost_name(self, id: str) -> None:
        """Another server's member has the name of one of this session's.

        Its line is broken off: when its client joins again it is told that the name is taken.
        """
        session = self._live.get(id)
        if session is not None and session.connection is not None:
            logger.warning("session %s has lost its name to another server's member", id)
            session.connection.break_off()

    def _remove_record(self, session: Session) -> None:
        is_shared = self._server.engine.shared
        write = self._write(session.path, None)
        if is_shared and session.rev:
            # If another server has adopted it in the meantime, it has not ended.
            write.expect = session.rev

        def swept(outcome: Outcome) -> None:
            if is_shared and isinstance(outcome, errors.Conflict):
                logger.info("session %s goes on at another server", session.id)
            elif isinstance(outcome, errors.MoatKvError):
                logger.error("cannot end session %s yet: %s", session.id, outcome)
                self._live[session.id] = session
                session.ended = False
                session.broken_at = anyio.current_time()
                self._begun.set()
            else:
                # What was on its way when the record went; nothing can follow.
                self.sweep_entries(session.id)

        self._server.submit((write,), swept)
        if not is_shared:
            self.sweep_entries(session.id)

    def sweep_entries(self, id: str) -> None:
        """Delete what a session owned, as far as nobody has written over it."""
        store = self._server.store
        for path in list(store.session_entries.get(id, ())):
            node = store.tree.head(path)
            if node is not None and node.value is not None:
                write = self._write(path, None)
                write.expect = node.rev
                self._server.submit((write,), lambda outcome: self._swept(id, outcome))

    def _swept(self, id: str, outcome: Outcome) -> None:
        if not isinstance(outcome, errors.MoatKvError) or isinstance(outcome, errors.Conflict):
            return
        if id not in self._unswept:
            logger.error("an entry of session %s, which has ended, stays yet: %s", id, outcome)
        self._unswept.add(id)
        self._begun.set()

    def _write(self, path: Path, value: bytes | None) -> Write:
        return Write(
            path, value, origin=self._server.origin, tick=self._server.next_tick(), strict=True
        )

    def recover(self) -> None:
        """After a start: give the sessions of the log their time to come back."""
        if self._server.engine.shared:
            return  # `estates` has them
        tree = self._server.store.tree
        place = tree.find(PLACE)
        for key, node in list((place.children or {}).items()) if place is not None else []:
            if node.value is None:
                continue
            facts = codec.unpack(node.value)
            session = Session(str(key), facts.secret_hash, facts.ttl_s, facts.grace_s)
            session.recorded = True
            # All of its time to live, once; when it has come back, its grace is what it was.
            session.broken_at = anyio.current_time() + facts.ttl_s - facts.grace_s
            self._live[session.id] = session
        for id in list(self._server.store.session_entries):
            if id not in self._live:
                self.sweep_entries(id)

    async def run(self) -> None:
        """End what is overdue, for as long as the server lives."""
        swept_at = retried_at = anyio.current_time()
        while True:
            if not self._live and not self._unswept:
                # A server without sessions is not woken for nothing.
                self._begun = anyio.Event()
                await self._begun.wait()
                swept_at = anyio.current_time()
            await anyio.sleep(SWEEP_S)
            now = anyio.current_time()
            held_up_s = now - swept_at - SWEEP_S
            swept_at = now
            if held_up_s > HELD_UP_S:
                self._give_back(held_up_s)
                continue
            if self._unswept and now - retried_at >= RETRY_S:
                retried_at = now
                self._sweep_again()
            held = self._server.leases.held
            self._server.groups.tell_parted(self._server.leases.is_parted)
            for session in list(self._live.values()):
                if not held and session.recorded:
                    self._give_up(session)
                elif (reason := session.overdue(now)) is not None:
                    self.end(session, reason)
                elif held and not session.recorded and self._owns(session):
                    self.record(session)

    def _owns(self, session: Session) -> bool:
        """Whether it ought to have a record: it is a member since this server was cut off."""
        return self._server.groups.has_joined(session.id)

    def _sweep_again(self) -> None:
        unswept, self._unswept = self._unswept, set()
        for id in unswept:
            if id not in self._live:
                self.sweep_entries(id)

    def _give_back(self, lost_s: float) -> None:
        for session in self._live.values():
            session.heard_at += lost_s
            if session.broken_at is not None:
                session.broken_at += lost_s
