"""A process among others, for plain threads: `aio.process`, called and waited for.

Has a client, and an event loop in a thread, of its own, unless it is given a blocking client. Any
number of threads may use one.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar, Self

from moat_kv import blocking, errors
from moat_kv.client.session import Session
from moat_kv.coord import ground, loop_thread, recovery, reference
from moat_kv.coord import lock as lock_module
from moat_kv.coord.aio import lock as aio_lock
from moat_kv.coord.aio import process as aio_process
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path

if TYPE_CHECKING:
    from types import TracebackType

    from moat_kv.coord.updating import UpdateLogic

logger = logging.getLogger(__name__)


class Process:
    """`process = Process()`, `with process.lock("name"): ...`, and at the end `process.stop()`.

    `server`: a `moat_kv.blocking.Client`, a URL or several; None: the default URL. `ttl_s`,
    `grace_s`: of its session, see `moat_kv.coord.aio.Process`. `backend`: the event loop of a
    client of its own, `asyncio` or `trio`. Stops by itself at the interpreter's end, too.

    Raises CannotConnect, and RuntimeError inside of a running event loop, as every call does.
    """

    AlreadyLocked: ClassVar[type[errors.AlreadyLocked]] = errors.AlreadyLocked

    def __init__(
        self,
        server: blocking.Client | str | Sequence[str] | None = None,
        *,
        ttl_s: float | None = None,
        grace_s: float | None = None,
        backend: str = "asyncio",
    ) -> None:
        blocking.refuse_event_loop()
        self._keeper: threading.Thread | None = None
        self._pid = os.getpid()
        #: Called before all else when the process stops.
        self.on_stop: list[Callable[[], None]] = []
        self._stack = ExitStack()
        with self._stack:
            self.client = self._stack.enter_context(loop_thread.open_client(server, backend))
            #: The process in the event loop.
            self.asynchronous = aio_process.Process(
                self.client.asynchronous, ttl_s=ttl_s, grace_s=grace_s
            )
            self.asynchronous.call_soon = self.client.call_soon
            self.client.run(self.asynchronous.start)
            #: Where its updates run.
            self.ground: ground.Ground = ground.BlockingGround(self.client)
            self._stack = self._stack.pop_all()
        atexit.register(self.stop)

    @property
    def id(self) -> str:
        return self.asynchronous.id

    @property
    def session(self) -> Session:
        """The session in the event loop; another one after it was lost."""
        return self.asynchronous.session

    def stop(self) -> None:
        """Let go of everything, and close the client if it is its own. Once is enough.

        In a process that was forked it does nothing: all of it is the other one's.
        """
        atexit.unregister(self.stop)
        stack, self._stack = self._stack, ExitStack()
        if os.getpid() != self._pid:
            return
        with stack:
            if self.asynchronous.stopped:
                return
            for finish in self.on_stop:
                finish()
            self.client.call_soon(self.asynchronous.watching.stop)
            keeper, self._keeper = self._keeper, None
            if keeper is not None:
                keeper.join(aio_process.STOP_S)  # it may wait for a server that is away
            self.client.run(self.asynchronous.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def know(self, kind: type[UpdateLogic]) -> None:
        """It has updates of that kind, and can execute those that others left.

        A thread sees to that from the first on; what it executes is executed there.
        """
        if self.asynchronous.watching.know(self, kind):
            self._keeper = threading.Thread(target=self._keep, name="moat-kv recovery", daemon=True)
            self._keeper.start()

    def _keep(self) -> None:
        try:
            ground.drive(recovery.keep(self))
        except (errors.MoatKvError, CancelledError, RuntimeError) as exc:
            logger.info("the client was closed before the process was stopped: %r", exc)

    # What it can have ---------------------------------------------------------------------------

    def path_of(self, name: str | Path) -> Path:
        return self.asynchronous.path_of(name)

    def lock(
        self,
        name: str | Path,
        block: bool = True,
        *,
        shared: bool = False,
        timeout_s: float = aio_lock.BLOCK_S,
        value: Any = NotGiven,
    ) -> lock_module.Lock:
        """See `moat_kv.coord.aio.Process.lock`."""
        made = self.asynchronous.lock(name, block, shared=shared, timeout_s=timeout_s, value=value)
        return lock_module.Lock(self.client, made)

    def semaphore(
        self,
        name: str | Path,
        seats: int,
        *,
        timeout_s: float = aio_lock.BLOCK_S,
        value: Any = NotGiven,
    ) -> lock_module.Lock:
        """See `moat_kv.coord.aio.Process.semaphore`."""
        made = self.asynchronous.semaphore(name, seats, timeout_s=timeout_s, value=value)
        return lock_module.Lock(self.client, made)

    def create_reference(self, resource: str | Path, block: bool = True) -> reference.Reference:
        """See `moat_kv.coord.aio.Process.create_reference`."""
        made = self.client.run(self.asynchronous.create_reference, resource, block)
        return reference.Reference(self, made)

    def election(
        self, name: str | Path, value: Any = None, *, timeout_s: float = math.inf
    ) -> lock_module.Election:
        """See `moat_kv.coord.aio.Process.election`."""
        made = self.asynchronous.election(name, value, timeout_s=timeout_s)
        return lock_module.Election(self.client, made)

    def barrier(
        self, name: str | Path, parties: int, *, timeout_s: float = aio_lock.BLOCK_S
    ) -> lock_module.Barrier:
        """See `moat_kv.coord.aio.Process.barrier`."""
        made = self.asynchronous.barrier(name, parties, timeout_s=timeout_s)
        return lock_module.Barrier(self.client, made)
