"""Where subscribers are called: an event loop, or the background thread.

`delivery` hands one call after the other to the `Venue` of its subscriber.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from moat_kv.state import loops

if TYPE_CHECKING:
    from moat_kv.state.delivery import Call


class Venue:
    """Runs calls, one after the other or side by side; never in the caller's stack."""

    def run(self, call: Call) -> bool:
        """Have it run soon; False: this cannot."""
        raise NotImplementedError

    def is_running(self) -> bool:
        """Whether what was accepted will be run."""
        return True

    def is_over(self) -> bool:
        """Whether it will never run anything any more."""
        return False


class LoopVenue(Venue):
    """An event loop."""

    def __init__(self, loop: loops.Loop) -> None:
        self._loop = loop

    def run(self, call: Call) -> bool:
        return self._loop.spawn(call.run)

    def is_running(self) -> bool:
        return self._loop.is_running()

    def is_over(self) -> bool:
        return self._loop.is_over()


class Background(Venue):
    """One thread, started when it is first needed; async callbacks run in a loop of its own."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None

    def run(self, call: Call) -> bool:
        with self._mutex:
            if self._thread is None or not self._thread.is_alive():
                name = "moat-kv state subscribers"
                self._thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._thread.start()
        self._calls.put(call)
        return True

    def is_here(self) -> bool:
        """Whether the thread that asks is this one."""
        return self._thread is threading.current_thread()

    def _work(self) -> None:
        runner: asyncio.Runner | None = None

        def run_async(result: Awaitable[Any]) -> Any:
            nonlocal runner
            if runner is None:
                runner = asyncio.Runner()
            return runner.run(_awaited(result))

        while True:
            self._calls.get().run_in_thread(run_async)


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


background = Background()


def here() -> Venue:
    """The venue of whoever subscribes: the event loop that runs, else the background thread."""
    loop = loops.current_loop()
    return background if loop is None else LoopVenue(loop)
