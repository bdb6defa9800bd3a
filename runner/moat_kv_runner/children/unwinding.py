"""SIGTERM as an exception in a synchronous script, but never amid a call to the event loop.

`inside` uses it for scripts in the main thread, which are unwound when they are told to end, so
that `finally` and contexts are run. An exception out of a signal may come between any two steps of
Python code. Amid what hands a call to the client's event loop, or enters and leaves one of its
contexts, it could leave a lock behind that the loop then waits for; so there the call is cancelled
instead, and the exception follows it.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, TypeVar

from moat_kv import blocking
from moat_kv_runner import execution

_T = TypeVar("_T")

#: After so long one that was told to end, and did not hear it, is told again, in seconds.
AGAIN_S = 0.02


class Unwinding:
    """See above; for one script."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        # Calls under way in the script's thread, each within the one before.
        self._calls: list[futures.Future[Any] | None] = []
        # It was told to end during a call.
        self._is_told = False
        # It is on its way out, and is told no more.
        self._is_over = False

    def begin(self, number: int = signal.SIGTERM) -> None:
        """From now on this signal raises `execution.Stopped`, once. In the main thread."""
        self._number, self._unraisable_before = number, sys.unraisablehook
        sys.unraisablehook = self._was_swallowed
        signal.signal(number, self._told)

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
                self._is_told, self._is_over = False, True
                raise execution.Stopped from None

    def _told(self, *_: object) -> None:
        if self._is_over:
            return
        if not self._calls:
            self._is_over = True
            raise execution.Stopped
        self._is_told = True
        future = self._calls[-1]
        if future is not None:
            # In a thread of its own, because this one may just now hold the future's lock. Started
            # in this way it waits for nothing, and so for nobody who waits for that lock.
            _thread.start_new_thread(future.cancel, ())

    def _was_swallowed(self, what: sys.UnraisableHookArgs) -> None:
        """It came amid something that lets no exception out, as `__del__`: soon once more."""
        if what.exc_type is not execution.Stopped:
            self._unraisable_before(what)
            return
        self._is_over = False
        _thread.start_new_thread(self._tell_again, ())

    def _tell_again(self) -> None:
        time.sleep(AGAIN_S)
        signal.pthread_kill(self._thread, self._number)
