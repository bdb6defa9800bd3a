"""Calls from plain threads into an event loop that runs in another one, waited for.

`blocking` makes all its calls so. What is called is any async function, or what hands out portions;
contexts are held there. How each is waited for is the caller's (`Waits`): whatever reaches into the
loop goes that way, so that who is called by a signal knows when a lock of the loop's may be held.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import anyio

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

_T = TypeVar("_T")


def refuse_event_loop() -> None:
    """Raises RuntimeError if an event loop runs here, which a blocking call would stop."""
    try:
        anyio.get_current_task()
    except RuntimeError:  # of which anyio's and sniffio's "no event loop" errors are kinds
        return
    raise RuntimeError(
        "the blocking client would stop the event loop that runs here; use moat_kv.open_client"
    )


class Waits(Protocol):
    """How something in the loop is started and waited for."""

    def __call__(self, start: Callable[[], futures.Future[_T]], /) -> _T: ...


def wait(start: Callable[[], futures.Future[_T]]) -> _T:
    """The usual way: Ctrl-C here cancels it there."""
    future = start()
    try:
        return future.result()
    except BaseException:  # Ctrl-C; what the call itself has raised finds nothing to cancel
        future.cancel()
        raise


class Caller:
    """Runs things in the loop's thread."""

    def __init__(self, portal: BlockingPortal, waits: Waits) -> None:
        self.portal = portal
        self.waits = waits
        self._pid = os.getpid()

    @property
    def is_forked(self) -> bool:
        """The loop's thread is in the process that this one was forked from."""
        return os.getpid() != self._pid

    def call(self, function: Callable[..., Awaitable[_T]], *args: Any, **kwargs: Any) -> _T:
        """Call an async function in the loop and wait."""
        self._check()

        async def run() -> _T:
            return await function(*args, **kwargs)

        return self.waits(lambda: self.portal.start_task_soon(run))

    def call_soon(self, function: Callable[[], Awaitable[None]]) -> None:
        """Have it called, without waiting; not at all if the loop is at its end."""
        if self.is_forked:
            return

        def start() -> futures.Future[None]:
            self.portal.start_task_soon(function)
            handed_over: futures.Future[None] = futures.Future()
            handed_over.set_result(None)
            return handed_over

        try:
            self.waits(start)
        except RuntimeError:
            return

    def call_sync(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Call a plain function in the loop and wait."""

        async def run() -> _T:
            return function(*args, **kwargs)

        return self.call(run)

    def held(
        self, make: Callable[..., AbstractAsyncContextManager[_T]], *args: Any, **kwargs: Any
    ) -> Held[_T]:
        """A context for a `with` here, made, entered and left in the loop."""
        self._check()
        return Held(self, lambda: make(*args, **kwargs))

    def _check(self) -> None:
        refuse_event_loop()
        if self.is_forked:
            raise RuntimeError("a client does not go along into a forked process; open one there")


class Held(AbstractContextManager[_T]):
    """One context that a task in the loop holds for as long as a `with` here lasts.

    It is left in the same way whatever ends the `with`: no exception goes over to the loop, where
    one that is for this thread alone would end everything.
    """

    def __init__(self, caller: Caller, make: Callable[[], AbstractAsyncContextManager[_T]]) -> None:
        self._caller = caller
        self._make = make
        # Done when it is entered, or cannot be; cancelled by who waits for that no longer.
        self._entered: futures.Future[_T] = futures.Future()
        self._over: anyio.Event
        self._task: futures.Future[None] | None = None

    def __enter__(self) -> _T:
        try:
            return self._caller.waits(self._begin)
        except BaseException:
            # It may have been entered just then; nobody would leave it.
            if self._task is not None:
                self._task.cancel()
            raise

    def __exit__(self, *_: object) -> None:
        if not self._caller.is_forked:
            self._caller.waits(self._end)

    def _begin(self) -> futures.Future[_T]:
        self._task = self._caller.portal.start_task_soon(self._hold)
        self._entered.add_done_callback(self._give_up)
        return self._entered

    def _give_up(self, entered: futures.Future[_T]) -> None:
        if entered.cancelled() and self._task is not None:
            self._task.cancel()

    def _end(self) -> futures.Future[None]:
        assert self._task is not None
        self._caller.portal.start_task_soon(self._over.set)
        return self._task

    async def _hold(self) -> None:
        self._over = anyio.Event()
        try:
            async with self._make() as value:
                if self._entered.set_running_or_notify_cancel():
                    self._entered.set_result(value)
                    await self._over.wait()
        except Exception as exc:
            if self._entered.done() or not self._entered.set_running_or_notify_cancel():
                raise
            self._entered.set_exception(exc)
        finally:
            # Cancelled before it was entered: nobody is to wait for it.
            self._entered.cancel()


class Batches(Protocol[_T]):
    """What can be taken in portions, so that not every item costs a change of threads."""

    async def next_batch(self) -> list[_T]: ...


class BlockingIterator(Generic[_T], Iterator[_T]):
    """A plain iterator over what comes in portions."""

    def __init__(self, caller: Caller, source: Batches[_T]) -> None:
        self._caller = caller
        self._source = source
        self._waiting: list[_T] = []

    def __next__(self) -> _T:
        if not self._waiting:
            self._waiting = self._caller.call(self._source.next_batch)
            self._waiting.reverse()
        if not self._waiting:
            raise StopIteration
        return self._waiting.pop()
