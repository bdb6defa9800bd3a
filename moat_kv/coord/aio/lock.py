"""Locks: a ticket in a line, and waiting until it is its turn.

Made by `Process.lock`, `semaphore`, `election` and by references, which differ in their `rules`
only. The ticket's revision is the fence. Whoever holds one has it until it is released or its
process' session ends; nothing is renewed. Nothing here looks at a clock but for the time limit.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import anyio

from moat_kv import errors
from moat_kv.client import claiming
from moat_kv.client.session import Session
from moat_kv.coord import line, resource, rules
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path

if TYPE_CHECKING:
    from types import TracebackType

    from moat_kv.coord.aio.process import Process

logger = logging.getLogger(__name__)

#: How long one waits for a lock if nobody says otherwise, in seconds.
BLOCK_S = 500.0
#: How long one who does not want to wait for others waits for the server, in seconds.
TRY_S = 10.0
#: How long a release waits for the server, in seconds; after that it is done in the background.
RELEASE_S = 2.0


class Standing(NamedTuple):
    """A ticket in a line, and the session that it ends with."""

    session: Session
    claim: claiming.Claim


async def stand(process: Process, at: line.Line, facts: Mapping[str, Any]) -> Standing:
    """Stand at the end of a line, in whichever session the process has."""
    about = {"process": process.id, "client": process.client.name, **facts}
    while True:
        session = await process.live_session()
        key = process.new_key()
        try:
            claim = await at.enter(key, about, session)
        except errors.SessionExpired:
            logger.info("the session ended; entering the line at %s in the next", at.place)
            await session.doubt()
            continue
        except BaseException:
            # The request may be on its way, and nobody would know of the ticket.
            process.leave_soon(at, claiming.Claim(at.place / key, 0))
            raise
        if claim is not None:
            return Standing(session, claim)


class Lock:
    """`async with process.lock("name") as lock: ...`; exclusive, shared, or one seat of several.

    One object is one holder: two of the same process exclude each other like those of strangers.
    It is not re-entrant. After a release it may be acquired again.
    """

    def __init__(
        self,
        process: Process,
        name: str | Path,
        *,
        mode: rules.Mode,
        timeout_s: float = BLOCK_S,
        value: Any = NotGiven,
    ) -> None:
        self._process = process
        self._line = line.Line(process.client, process.path_of(name) / resource.LINE)
        self._mode = mode
        self._facts = {"kind": mode.kind}
        if value is not NotGiven:
            self._facts["value"] = value
        self._lost = anyio.Event()
        self._claim: claiming.Claim | None = None
        # Entering, waiting, or held.
        self._busy = False
        self._watching: anyio.CancelScope | None = None
        self._on_loss: list[Callable[[], None]] = []
        #: What it is for, as people know it.
        self.name = resource.name_of(name)
        #: How long `acquire` waits unless told otherwise, in seconds.
        self.timeout_s = timeout_s

    # What it is now -----------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """It was acquired, and neither released nor lost."""
        return self._claim is not None and not self._lost.is_set()

    @property
    def fence(self) -> int:
        """The number of this hold; each later holder's is higher. RuntimeError if not acquired."""
        return self.guard[1]

    @property
    def guard(self) -> tuple[Path, int]:
        """What to give as `fence=` to a client's writes, so that they count only under this lock.

        The engine refuses them with StaleFence as soon as the lock is not held any more. Still
        there when the lock is lost, so that what goes on learns it. RuntimeError if not acquired.
        """
        if self._claim is None:
            raise RuntimeError(f"the lock of {self.name} is not held; acquire it first")
        return self._claim.guard

    @property
    def lost(self) -> anyio.Event:
        """Set when it is gone without a release; another one after the next `acquire`.

        A session that ends is noticed in any case. Asking for this has the entry itself watched,
        too, for the case that somebody deletes it.
        """
        claim = self._claim
        if claim is not None and self.held and self._watching is None:
            self._watching = anyio.CancelScope()
            self._process.tasks.start_soon(self._watch, claim, self._watching)
        return self._lost

    # Acquiring and releasing --------------------------------------------------------------------

    async def acquire(self, timeout_s: float | None = None) -> int:
        """Wait until it is this one's turn; the fence.

        `timeout_s`: at most so long, in seconds, None: `self.timeout_s`; 0: only if it is free.

        Raises AlreadyLocked when the time is over, Detached at once if the server is cut off,
        Disconnected if there was no line for all that time, RuntimeError if it is held already.
        """
        if self._busy:
            raise RuntimeError(
                f"the lock of {self.name} is held by this object; it is not re-entrant"
            )
        self._busy = True
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            self._claim = await self._acquire(limit_s)
        finally:
            self._busy = self._claim is not None
        self._process.holds.add(self)
        return self._claim.fence

    async def _acquire(self, limit_s: float) -> claiming.Claim:
        blocking: list[rules.Ticket] = []
        if limit_s <= 0:
            blocking += rules.blockers(self._mode, await self._line.read())
            if blocking:
                raise self._refused(blocking)
        # One who does not want to wait for others still waits for the server's answers.
        with anyio.move_on_after(limit_s if limit_s > 0 else TRY_S):
            while True:
                standing = await stand(self._process, self._line, self._facts)
                claim = standing.claim
                try:
                    if await self._turn_has_come(standing, blocking, wait=limit_s > 0):
                        self._lost = anyio.Event()
                        return claim
                except BaseException:
                    self._process.leave_soon(self._line, claim)
                    raise
                if blocking:
                    self._process.leave_soon(self._line, claim)
                    break
        raise self._refused(blocking)

    async def _turn_has_come(
        self, standing: Standing, blocking: list[rules.Ticket], *, wait: bool
    ) -> bool:
        """Wait for the turn; False if the ticket is gone with its session, or, without `wait`, if
        others are in the way. `blocking` is kept as the list of those.
        """
        session, claim = standing
        while True:
            tickets = await self._line.read()
            earlier = [each for each in tickets if each.rev < claim.fence]
            blocking[:] = rules.blockers(self._mode, earlier)
            if session.ended or all(each.rev != claim.fence for each in tickets):
                blocking.clear()
                return False
            if not blocking:
                return True
            if not wait:
                return False
            awaited = rules.awaited(self._mode, blocking)
            await self._process.while_lasting(session, self._line.one_gone, awaited)

    def _refused(self, blocking: list[rules.Ticket]) -> errors.MoatKvError:
        client = self._process.client
        if not blocking and not client.connected:
            return errors.Disconnected(f"no line while waiting for the lock of {self.name}")
        if not blocking:
            return errors.AlreadyLocked(self.name)
        return errors.AlreadyLocked(self.name, blocking[0].holder)

    async def release(self) -> None:
        """Let the next one have it. Does nothing if it is not held; never frees another's."""
        claim, self._claim, self._busy = self._claim, None, False
        self._process.holds.discard(self)
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        if claim is None or self._lost.is_set():
            return
        with anyio.move_on_after(RELEASE_S, shield=True):
            await self._line.leave(claim)
            return
        self._process.leave_soon(self._line, claim)

    def lose(self) -> None:
        """Say that it is gone. For the process, when its session has ended."""
        if self._claim is not None and not self._lost.is_set():
            logger.warning("the lock of %s (fence %d) is lost", self.name, self._claim.fence)
            self._lost.set()
            for tell in list(self._on_loss):
                tell()

    async def _watch(self, claim: claiming.Claim, scope: anyio.CancelScope) -> None:
        with scope:
            await line.gone(self._process.client, claim.path, {claim.path}, depth=0)
            if self._claim is claim:
                self.lose()

    # As a context -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.release()

    @asynccontextmanager
    async def guarded(self, timeout_s: float | None = None) -> AsyncIterator[Self]:
        """Acquire; the block is cancelled when the lock is lost, and then LockLost is raised."""
        fence = await self.acquire(timeout_s)
        try:
            with anyio.CancelScope() as scope:
                self._on_loss.append(scope.cancel)
                if self.lost.is_set():  # asked for, so that its entry is watched
                    scope.cancel()
                yield self
            if scope.cancelled_caught:
                raise errors.LockLost(self.name, fence)
        finally:
            self._on_loss.clear()
            await self.release()
