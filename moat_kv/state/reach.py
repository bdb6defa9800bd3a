"""How a client's event loop is reached, from itself, from a plain thread, and from other loops.

`sharing` makes one for each client; `grounds` uses it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from moat_kv import errors
from moat_kv.state import loops

if TYPE_CHECKING:
    from concurrent.futures import Future

    from anyio.from_thread import BlockingPortal

_T = TypeVar("_T")


class Reach:
    """Made in the client's loop."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._thread = threading.get_ident()
        self._pid = os.getpid()

    def call(self, function: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        """Run an async function in the loop and wait in this thread. Raises what it raises.

        RuntimeError if an event loop runs in this thread; Detached if the client has ended, or did
        not go along when this process was forked.
        """
        if loops.has_loop():
            raise RuntimeError(
                "a shared model's State would stop the event loop that runs here; use `async with`"
            )
        future = self._start(function, *args)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def acall(self, function: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        """The same, from any event loop."""
        if threading.get_ident() == self._thread:
            return await function(*args)
        waker = loops.TaskWaker()
        future = self._start(function, *args)
        future.add_done_callback(lambda done: waker.wake())
        try:
            await waker.wait(None)
        except BaseException:
            future.cancel()
            raise
        return future.result()

    def _start(self, function: Callable[..., Awaitable[_T]], *args: Any) -> Future[_T]:
        if os.getpid() != self._pid:
            raise errors.Detached("this process was forked; attach to the network here, too")
        try:
            return self._portal.start_task_soon(function, *args)
        except RuntimeError as exc:
            raise errors.Detached("the client has ended") from exc
