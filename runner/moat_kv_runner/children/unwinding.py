"""SIGTERM as an exception in a synchronous script, but never amid a call to the event loop.

`inside` uses it for scripts in the main thread, which are unwound when they are told to end, so
that `finally` and contexts are run. An exception out of a signal may come between any two steps of
Python code. Amid what hands a call to the client's event loop it could leave a lock behind that
the loop then waits for; so there the call is cancelled instead, and the exception follows it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from concurrent import futures
from typing import TYPE_CHECKING, Any, TypeVar

from moat_kv import blocking
from moat_kv_runner import execution

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

_T = TypeVar("_T")


class Unwinding:
    """See above; for one script."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._thread = threading.get_ident()
        # Calls under way in the script's thread, each within the one before.
        self._calls: list[futures.Future[Any] | None] = []
        # It was told to end during a call.
        self._is_told = False

    def begin(self) -> None:
        """From now on SIGTERM raises `execution.Stopped`. In the main thread."""
        signal.signal(signal.SIGTERM, self._told)

    def wait(self, start: Callable[[], futures.Future[_T]]) -> _T:
        """How the script's blocking client waits; see `blocking.Waits`."""
        if threading.get_ident() != self._thread:
            return blocking.wait(start)
        self._calls.append(None)
        try:
            self._calls[-1] = future = start()
            if self._is_told:
                future.cancel()
            return future.result()
        except BaseException:
            # Nobody waits for it any more; and if it has failed, this changes nothing.
            if (started := self._calls[-1]) is not None:
                started.cancel()
            raise
        finally:
            self._calls.pop()
            if self._is_told and not self._calls:
                self._is_told = False
                raise execution.Stopped from None

    def _told(self, *_: object) -> None:
        if not self._calls:
            raise execution.Stopped
        self._is_told = True
        future = self._calls[-1]
        if future is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the call
                # There, because this thread may just now hold the future's lock.
                self._portal.start_task_soon(future.cancel)
