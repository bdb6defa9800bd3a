"""Calls from plain threads into an event loop that runs in another one, waited for.

`blocking` makes all its calls so. What is called is any async function, or what hands out portions.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
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
    """How a call in another thread is started and waited for."""

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
        self._portal = portal
        self._waits = waits
        self._pid = os.getpid()

    @property
    def is_forked(self) -> bool:
        """The loop's thread is in the process that this one was forked from."""
        return os.getpid() != self._pid

    def call(self, function: Callable[..., Awaitable[_T]], *args: Any, **kwargs: Any) -> _T:
        """Call an async function in the loop and wait."""
        refuse_event_loop()
        if self.is_forked:
            raise RuntimeError("a client does not go along into a forked process; open one there")

        async def run() -> _T:
            return await function(*args, **kwargs)

        return self._waits(lambda: self._portal.start_task_soon(run))

    def call_soon(self, function: Callable[[], Awaitable[None]]) -> None:
        """Have it called, without waiting; not at all if the loop is at its end."""
        if self.is_forked:
            return
        try:
            self._portal.start_task_soon(function)
        except RuntimeError:
            return

    def call_sync(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Call a plain function in the loop and wait."""

        async def run() -> _T:
            return function(*args, **kwargs)

        return self.call(run)


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
