"""An event loop by a virtual clock, in a thread of its own, for a test that is a plain function.

`box` calls what happens in it. A call that the loop does not come back from (a script that blocks,
or never rests) fails after some seconds of real time, and says where the loop is.
"""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from moat_kv.code import compiling
from moat_kv.testing import virtual_time

_T = TypeVar("_T")
_S = TypeVar("_S")

#: So long a call may take, in seconds of real time.
LIMIT_S = 20.0


class LoopThread(Generic[_S]):
    """See above. What `make` gives is entered in the loop, and left at the end."""

    def __init__(
        self, make: Callable[[], AbstractAsyncContextManager[_S]], *, backend: str = "asyncio"
    ) -> None:
        self.clock = virtual_time.clock_for(backend)
        self._make = make
        self._ready: concurrent.futures.Future[tuple[BlockingPortal, _S]] = (
            concurrent.futures.Future()
        )
        self._end: anyio.Event
        #: It did not come back once; nothing can be done in it any more.
        self.is_stuck = False
        self._thread = threading.Thread(
            target=self._live, args=(backend,), name="moat script", daemon=True
        )
        self._thread.start()
        self._portal, self.made = self._ready.result(LIMIT_S)

    def _live(self, backend: str) -> None:
        try:
            anyio.run(self._serve, backend=backend, backend_options=self.clock.backend_options)
        except BaseException as exc:
            if not self._ready.done():
                self._ready.set_exception(exc)
                return
            raise

    async def _serve(self) -> None:
        self._end = anyio.Event()
        async with BlockingPortal() as portal:
            async with self._make() as made:
                self._ready.set_result((portal, made))
                await self._end.wait()
            await portal.stop(cancel_remaining=True)

    def call(self, function: Callable[..., Awaitable[_T]], *args: Any, **kwargs: Any) -> _T:
        """Call an async function in the loop, and wait. Raises what it does; AssertionError if the
        loop does not come back.
        """

        async def call() -> _T:
            return await function(*args, **kwargs)

        future = self._portal.start_task_soon(call)
        try:
            return future.result(LIMIT_S)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # the function's own
            self.is_stuck = True
            raise AssertionError(
                f"the script did not come to rest within {LIMIT_S:g} s: it blocks the event loop, "
                f"or goes on without waiting for anything\n{self.where()}"
            ) from None

    def where(self) -> str:
        """What the loop's thread is at, as far as it is stored code; else all of it."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        summary = traceback.extract_stack(frame)
        stored = [each for each in summary if compiling.is_stored(each.filename)]
        return "".join(traceback.format_list(stored or list(summary)[-3:]))

    def close(self) -> None:
        """End the loop. One that is stuck is left behind, in its thread."""
        if self.is_stuck:
            return

        async def end() -> None:
            self._end.set()

        self._portal.start_task_soon(end)
        self._thread.join(LIMIT_S)
