"""Leases: which servers of a network are alive, as far as that can be known.

Each server has a record below `(None, "lease")`, named by its node, and renews it by strict
compare-and-set. It may act for its sessions until `lease_s` after it *sent* the last renewal that
was acknowledged; for all others it is alive until so long after they *saw* that. Only durations
that each measured itself decide, and nobody judges while cut off: what has not been seen may have
happened. On an engine of one server there are no records, and the lease always holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from moat_kv import codec, errors
from moat_kv.engine import age
from moat_kv.engine.base import Outcome
from moat_kv.entry import SYSTEM, Guard, Head, Record, Write
from moat_kv.path import Path
from moat_kv.version import VERSION

if TYPE_CHECKING:
    from moat_kv.server.server import Server

logger = logging.getLogger(__name__)

PLACE = Path(SYSTEM, "lease")

#: A renewal that failed is tried again after so many seconds at most.
RETRY_S = 0.5
#: How long the start of a server may be held up by its lease beyond another's time, in seconds.
START_S = 5.0
#: How long giving the lease back may take at the end, in seconds.
RELEASE_S = 1.0


class Lease:
    """A server's lease, as it is seen here."""

    __slots__ = ("home", "is_changing", "lease_s", "owner", "rev", "seen_at")

    def __init__(self, head: Head, node: str, *, now: float) -> None:
        assert head.value is not None
        facts = codec.unpack(head.value)
        self.owner = f"{node}:{facts['incarnation']}"
        self.lease_s = float(facts["lease_s"])
        self.home = facts.get("home", "")
        self.rev = head.rev
        self.seen_at = now
        #: It has been renewed since it was seen first.
        self.is_changing = False


class Leases:
    """This server's lease, and what is seen of all others'. `clock` counts suspended time."""

    def __init__(self, server: Server, *, clock: Callable[[], float] = age.up_s) -> None:
        self._server = server
        self._clock = clock
        self.path = PLACE / server.node
        self._seen: dict[str, Lease] = {}
        # By `clock`.
        self._held_until: float | None = None
        self._began_at = clock()
        # In this log; one that is restored from a copy has an older one of ours.
        self._has_held = False
        self._has_waited = False
        self._due = 0.0
        self._renewing = False
        self._ending = False
        self._news = anyio.Event()

    @property
    def held(self) -> bool:
        """Whether this server may act for its sessions."""
        if not self._server.engine.shared:
            return True
        return self._held_until is not None and self._clock() < self._held_until

    @property
    def is_parted(self) -> bool:
        """Whether this server is cut off, and has been for as long as a lease holds.

        Nothing then keeps others from having what its clients had, and nothing can tell.
        """
        engine, until = self._server.engine, self._held_until
        if not engine.shared or engine.attached:
            return False
        if until is None:
            until = self._began_at + self._server.times.lease_s
        return self._clock() >= until

    def need(self) -> None:
        """Raises Detached while the lease is not held."""
        if not self.held:
            reason = self._server.engine.trouble or "this server has no lease in the network yet"
            raise errors.Detached(reason)

    # This server's own --------------------------------------------------------------------------

    async def begin(self) -> None:
        """Take the lease, if that can be had now. Raises NameTaken if another server has the name.

        One that a dead server has left is waited for, unless it was on these very files.
        """
        if not self._server.engine.shared:
            return
        self.begin_anew()
        lease = self._seen.get(self._server.node)
        limit_s = START_S + (lease.lease_s if lease is not None else 0.0)
        with anyio.move_on_after(limit_s):
            while self._server.engine.attached and not self.held:
                await self._pause(self._step())

    async def run(self) -> None:
        """Renew it for as long as the server lives. Raises NameTaken."""
        while self._server.engine.shared:
            # (Where there are sessions, `sessions` tells it sooner.)
            self._server.groups.tell_parted(self.is_parted)
            await self._pause(self._step())

    async def _pause(self, limit_s: float) -> None:
        with anyio.move_on_after(limit_s):
            await self._news.wait()
        self._news = anyio.Event()

    def _step(self) -> float:
        """Renew it, if that is due and can be done; in how many seconds the next step is."""
        if self._renewing or self._ending or not self._server.engine.attached:
            return RETRY_S
        lease = self._seen.get(self._server.node)
        if lease is not None and lease.owner != self._server.origin:
            wait_s = self._wait_for(lease)
            if wait_s > 0:
                return min(wait_s, RETRY_S)
        now = self._clock()
        if now < self._due:
            return self._due - now
        self._renew(lease.rev if lease is not None else 0, now)
        return RETRY_S

    def _wait_for(self, lease: Lease) -> float:
        """How long another incarnation's lease may still hold, in seconds. Raises NameTaken."""
        if self._has_held or lease.is_changing:
            hint = "another server of the network runs under it; each needs a name of its own"
            raise errors.NameTaken("server name", self._server.node, hint=hint)
        if lease.home and lease.home == self._server.engine.home:
            return 0.0
        if not self._has_waited:
            self._has_waited = True
            logger.info("a server %s was there until lately; waiting for its end", lease.owner)
        return lease.seen_at + lease.lease_s - anyio.current_time()

    def _renew(self, rev: int, sent_at: float) -> None:
        times, server = self._server.times, self._server
        facts = {
            "incarnation": server.incarnation,
            "lease_s": times.lease_s,
            "version": VERSION,
            "urls": list(server.urls),
            "home": server.engine.home,
        }
        self._renewing = True

        def done(outcome: Outcome) -> None:
            self._renewing = False
            if isinstance(outcome, errors.MoatKvError):
                logger.debug("the lease is not renewed: %s", outcome)
                self._due = self._clock() + RETRY_S
            else:
                self._has_held = True
                self._held_until = sent_at + times.lease_s
                self._due = sent_at + times.renew_s
            self._news.set()

        server.submit((self._write(codec.pack(facts), rev),), done)

    def _write(self, value: bytes | None, rev: int) -> Write:
        server = self._server
        return Write(
            self.path,
            value,
            origin=server.origin,
            tick=server.next_tick(),
            expect=rev,
            strict=True,
        )

    async def release(self) -> None:
        """Give it back, so that nobody has to wait for its end. At the end of the server."""
        self._ending = True
        if not self._server.engine.shared:
            return
        with anyio.move_on_after(RELEASE_S, shield=True):
            while self._renewing:
                await self._pause(RELEASE_S)
            lease = self._seen.get(self._server.node)
            if lease is None or lease.owner != self._server.origin or not self.held:
                return
            released = anyio.Event()
            self._server.submit((self._write(None, lease.rev),), lambda _outcome: released.set())
            await released.wait()

    # Others' ------------------------------------------------------------------------------------

    def applied(self, record: Record) -> None:
        """A record below `PLACE` was applied."""
        node = str(record.path[-1])
        before = self._seen.get(node)
        if record.value is None:
            self._seen.pop(node, None)
        else:
            lease = Lease(record, node, now=anyio.current_time())
            lease.is_changing = before is not None and before.owner == lease.owner
            self._seen[node] = lease
        if node == self._server.node:
            self._news.set()

    def begin_anew(self) -> None:
        """The tree is another one: all leases count from now."""
        self._seen.clear()
        self._has_held = False
        place = self._server.store.tree.find(PLACE)
        now = anyio.current_time()
        for key, node in list((place.children or {}).items()) if place is not None else []:
            if node.value is not None:
                self._seen[str(key)] = Lease(node, str(key), now=now)

    def touched(self) -> None:
        """The network is out of reach, or in reach again: all leases count from now."""
        now = anyio.current_time()
        for lease in self._seen.values():
            lease.seen_at, lease.is_changing = now, False
        self._due = 0.0
        self._news.set()

    def give_back(self, lost_s: float) -> None:
        """This server was held up for so long, and may have missed renewals."""
        for lease in self._seen.values():
            lease.seen_at += lost_s

    def is_over(self, owner: str) -> bool:
        """Whether that server (`node:incarnation`) has lost its lease, or given it back.

        To be asked only while in touch.
        """
        lease = self._seen.get(owner.rpartition(":")[0])
        if lease is None or lease.owner != owner:
            return True
        return anyio.current_time() - lease.seen_at >= lease.lease_s

    def is_known_over(self, owner: str) -> bool:
        """The same, but False for one that has not been seen to have a lease."""
        lease = self._seen.get(owner.rpartition(":")[0])
        return lease is not None and lease.owner == owner and self.is_over(owner)

    def guards(self, owner: str) -> tuple[Guard, ...]:
        """What makes sure that a server whose lease is over has not renewed it after all."""
        lease = self._seen.get(owner.rpartition(":")[0])
        if lease is None or lease.owner != owner:
            return ()  # it can never have it again
        return (Guard(PLACE / owner.rpartition(":")[0], lease.rev),)
