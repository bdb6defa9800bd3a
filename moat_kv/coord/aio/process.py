"""A process among others: one session, under which locks and references are held.

Made by users, or by the blocking twin. Keeps a session alive as long as it lives itself; if that is
lost (the process was frozen, its line broken for too long) all locks are lost, and a new session is
opened under which new ones can be had and references are made anew. What is to be left behind in
the tree is cleaned up in the background.
"""

from __future__ import annotations

import itertools
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar, Self

import anyio
import anyio.abc

from moat_kv import config, errors
from moat_kv.client import claiming, opening
from moat_kv.client.client import Client
from moat_kv.client.session import Session
from moat_kv.coord import (
    ground,
    holding,
    line,
    recovery,
    resource,
    rules,
    unsettled,
    watching,
)
from moat_kv.coord.aio import barrier, election, reference
from moat_kv.coord.aio import lock as lock_module
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path

if TYPE_CHECKING:
    from types import TracebackType

    from moat_kv.coord.updating import UpdateLogic

logger = logging.getLogger(__name__)

#: How long the end waits for what is still to be cleaned up, in seconds; the session's end does it.
STOP_S = 2.0


def _call_now(function: Callable[[], None]) -> None:
    function()


class Process:
    """`async with Process() as process: async with process.lock("name"): ...`

    `server`: a client, a URL or several; None: the default URL. `ttl_s`, `grace_s`: of the session,
    in seconds; how long the process may be silent, and how long its line may be broken, before its
    locks pass on. None leaves them to the server.
    """

    AlreadyLocked: ClassVar[type[errors.AlreadyLocked]] = errors.AlreadyLocked

    def __init__(
        self,
        server: Client | str | Sequence[str] | None = None,
        *,
        ttl_s: float | None = None,
        grace_s: float | None = None,
    ) -> None:
        self._server = server
        self._times = {"ttl_s": ttl_s, "grace_s": grace_s}
        self._stack = AsyncExitStack()
        self._keys = itertools.count(1)
        self._leaving = 0
        self._left = anyio.Event()
        # Of those who wait for something that ends with the session.
        self._waiting: set[anyio.CancelScope] = set()
        self._opened = anyio.Event()
        self._running: anyio.CancelScope | None = None
        #: Different from that of any other process, also of one of the same name.
        self.id = secrets.token_hex(8)
        #: The locks that are held.
        self.holds: set[lock_module.Lock] = set()
        #: The resources that it refers to.
        self.holdings = holding.Holdings(self)
        #: Where its updates run, unless a blocking process has them.
        self.ground: ground.Ground = ground.AsyncGround()
        #: Has a function called in the event loop, soon. From any thread.
        self.call_soon: Callable[[Callable[[], None]], None] = _call_now
        self.watching = watching.Watching(self)
        #: What failed and is tried again.
        self.unsettled = unsettled.Unsettled(self.watching.tell)
        #: Called before all else when the process stops.
        self.on_stop: list[Callable[[], Awaitable[None]]] = []
        self.client: Client
        self.places: config.Places
        self.session: Session
        self.tasks: anyio.abc.TaskGroup

    # Its life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if isinstance(self._server, Client):
            self.client = self._server
        else:
            opened = opening.open_client(self._server)
            self.client = await self._stack.enter_async_context(opened)
        try:
            await self.start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async with self._stack:
            await self.stop()

    async def start(self) -> None:
        """Begin, with the client that is there. Not needed where it is used as a context."""
        if isinstance(self._server, Client):
            self.client = self._server
        self.places = await config.load_places(self.client)
        self.session = await self._open_session()
        self._opened.set()
        try:
            await self.client.task_group.start(self._run)
        except BaseException:
            await self.session.close()
            raise

    @property
    def stopped(self) -> bool:
        """It has not begun, was stopped, or its client was closed."""
        return self._running is None

    async def stop(self) -> None:
        """Let go of everything. Doing it again changes nothing."""
        if self._running is None:
            return
        try:
            for finish in self.on_stop:
                await finish()
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        """At once, also if who stops it is cancelled."""
        running, self._running = self._running, None
        self.watching.stop()
        self._opened.set()
        with anyio.move_on_after(STOP_S, shield=True):
            for held in list(self.holds):
                await held.release()
            while self._leaving:
                self._left = anyio.Event()
                await self._left.wait()
        if running is not None:
            running.cancel()
        if len(self.unsettled):
            logger.error("process %s stops with %d unsettled", self.id, len(self.unsettled))
        await self.session.close()

    async def _run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            with anyio.CancelScope() as self._running:
                async with anyio.create_task_group() as self.tasks:
                    task_status.started()
                    while True:
                        await self.session.lost.wait()
                        await self._renew()
        finally:
            self._running = None
            self.watching.stop()

    async def _open_session(self) -> Session:
        session = self.client.session(**self._times)
        await claiming.patiently(self.client, session.__aenter__)
        return session

    async def _renew(self) -> None:
        """The session is lost: so is what was held, and a new one is opened."""
        logger.warning("process %s has lost its session: %s", self.id, self.session.why_lost)
        self._opened = anyio.Event()
        for held in list(self.holds):
            held.lose()
        for scope in list(self._waiting):
            scope.cancel()
        old, self.session = self.session, await self._open_session()
        self._opened.set()
        self.tasks.start_soon(self._hold_again)
        await old.close()

    async def _hold_again(self) -> None:
        try:
            await claiming.patiently(self.client, self.holdings.renew)
        except errors.MoatKvError as exc:
            logger.info("the references are not made anew: %s", exc)

    async def live_session(self) -> Session:
        """The session, or, if that was lost, the next one."""
        while self.session.ended:
            if self._running is None:
                raise errors.SessionExpired(self.session.id, hint="the process was stopped")
            await anyio.lowlevel.checkpoint()
            await self._opened.wait()
        return self.session

    async def while_lasting(
        self, session: Session, function: Callable[..., Awaitable[None]], *args: Any
    ) -> None:
        """Call it, and cancel it if that session is lost."""
        with anyio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                if not session.ended:
                    await function(*args)
            finally:
                self._waiting.discard(scope)

    # Its updates --------------------------------------------------------------------------------

    @property
    def asynchronous(self) -> Process:
        """This one; a blocking process has one, too."""
        return self

    def know(self, kind: type[UpdateLogic]) -> None:
        """It has updates of that kind, and can execute those that others left."""
        if self.watching.know(self, kind):
            self.tasks.start_soon(recovery.keep, self)

    # What it can have ---------------------------------------------------------------------------

    def path_of(self, name: str | Path) -> Path:
        """Where the things of a resource live in the tree. Raises BadPath."""
        return resource.path_of(self.places.lock, name)

    def new_key(self) -> str:
        """A name that nobody else uses, for an entry of this process."""
        return f"{self.id}-{next(self._keys)}"

    def lock(
        self,
        name: str | Path,
        block: bool = True,
        *,
        shared: bool = False,
        timeout_s: float = lock_module.BLOCK_S,
        value: Any = NotGiven,
    ) -> lock_module.Lock:
        """The lock of a resource: one path element, or a path, below the place of locks.

        Exclusive, or `shared` with other shared ones. `timeout_s`: how long to wait for it;
        without `block` not at all. `value`: what others can read in the holder's entry.
        """
        mode = rules.Mode(kind=rules.SHARED if shared else rules.EXCLUSIVE)
        limit_s = timeout_s if block else 0.0
        return lock_module.Lock(self, name, mode=mode, timeout_s=limit_s, value=value)

    def semaphore(
        self,
        name: str | Path,
        seats: int,
        *,
        timeout_s: float = lock_module.BLOCK_S,
        value: Any = NotGiven,
    ) -> lock_module.Lock:
        """One of `seats` that may be taken at the same time, in the manner of a lock.

        All who use one have to name the same number of seats. Raises ValueError below 1.
        """
        if seats < 1:
            raise ValueError(f"a semaphore has at least one seat, not {seats}")
        mode = rules.Mode(kind=rules.SEATS, seats=seats)
        return lock_module.Lock(self, name, mode=mode, timeout_s=timeout_s, value=value)

    async def create_reference(
        self, resource: str | Path, block: bool = True
    ) -> reference.Reference:
        """Be counted among those who use a resource. `block`: whether its locks wait for others.

        Raises Detached if the server is cut off.
        """
        held = await self.holdings.enter(resource)
        return reference.Reference(self, held, block=block)

    def election(
        self, name: str | Path, value: Any = None, *, timeout_s: float = math.inf
    ) -> election.Election:
        """For the leadership of that name; `value` is what others learn of this candidate.

        `timeout_s`: for how long to campaign; by default for as long as it takes.
        """
        return election.Election(self, name, value=value, timeout_s=timeout_s)

    def barrier(
        self, name: str | Path, parties: int, *, timeout_s: float = lock_module.BLOCK_S
    ) -> barrier.Barrier:
        """Where so many processes wait for each other. Raises ValueError if not 1 to 499."""
        return barrier.Barrier(self, name, parties, timeout_s=timeout_s)

    def leave_soon(self, at: line.Line, claim: claiming.Claim) -> None:
        """Have a ticket or reference removed in the background, for who cannot wait for that.

        A process that was stopped leaves that to the end of its session.
        """
        if self._running is None:
            return
        self._leaving += 1
        self.tasks.start_soon(self._leave, at, claim)

    async def _leave(self, at: line.Line, claim: claiming.Claim) -> None:
        try:
            await at.leave(claim)
        except errors.MoatKvError:
            logger.exception("cannot remove %s", claim.path)
        finally:
            self._leaving -= 1
            self._left.set()
