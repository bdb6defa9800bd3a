"""An event loop whose time passes only when it is told to: hours at once, and nothing by itself.

    clock = virtual_time.clock_for("asyncio")
    anyio.run(main, backend="asyncio", backend_options=clock.backend_options)
    ...
    await clock.advance(3600)      # in the loop: every timer of that hour fires, in order

`settle` returns when everything in the loop waits for time, or for somebody outside: no task can go
on, no socket has data, no worker thread of anyio's is at work. So time never jumps while a thread
runs, as it does with clocks that jump as soon as all tasks are blocked. Sockets within the process
are seen through; for peers elsewhere, and for TCP (whose packets may be on their way for a moment),
set `cushion_s`. uvloop has a clock of its own, so asyncio's own loop is used.
"""

from __future__ import annotations

import abc
import asyncio
import heapq
import importlib
import itertools
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

import anyio.to_thread

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

#: While a thread is at work it is looked at so often, in seconds of real time.
LOOK_S = 0.001


class VirtualClock(abc.ABC):
    """The time of one event loop, in seconds from 0. All but `now` is for use in that loop."""

    def __init__(self) -> None:
        self.now = 0.0
        #: For so long, in seconds of real time, nothing may come from outside before all is at
        #: rest.
        self.cushion_s = 0.0
        #: Say whether something works that the loop does not know of; all is not at rest then.
        self.at_work: list[Callable[[], bool]] = []

    @property
    @abc.abstractmethod
    def backend_options(self) -> dict[str, Any]:
        """What `anyio.run` needs to use it."""

    @abc.abstractmethod
    async def settle(self) -> None:
        """Return when nothing more happens unless time passes, or somebody outside does it.

        Never, if something goes on without end.
        """

    @abc.abstractmethod
    def next_due(self) -> float | None:
        """When the next timer fires; None: there is none."""

    async def advance(self, seconds: float) -> None:
        """Let time pass: each timer fires at its time, and all settles before the next one."""
        if seconds < 0:
            raise ValueError("time does not go back")
        until = self.now + seconds
        while True:
            await self.settle()
            due = self.next_due()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
        self.now = until
        await self.settle()

    def _is_at_work(self) -> bool:
        return any(each() for each in self.at_work)


def clock_for(backend: str) -> VirtualClock:
    """A clock for `asyncio` or `trio`; for one run of a loop."""
    if backend == "asyncio":
        return AsyncioClock()
    if backend != "trio":
        raise ValueError(f"backend: asyncio or trio, not {backend!r}")
    clock: VirtualClock = importlib.import_module("moat_kv.testing.virtual_trio").TrioClock()
    return clock


def threads_at_work() -> Callable[[], bool]:
    """Whether any of anyio's worker threads is at work; made in the loop, called anywhere in it."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    return lambda: limiter.borrowed_tokens > 0


class AsyncioClock(VirtualClock):
    """The clock of a `VirtualLoop`."""

    def __init__(self) -> None:
        super().__init__()
        # Those who wait for all to settle.
        self._settling: list[asyncio.Future[None]] = []
        self._loop: VirtualLoop | None = None
        self._threads: Callable[[], bool] | None = None

    @property
    def backend_options(self) -> dict[str, Any]:
        return {"loop_factory": self._make_loop}

    def _make_loop(self) -> VirtualLoop:
        loop = self._loop = VirtualLoop(self)
        self.at_work.append(lambda: loop.executing > 0)
        return loop

    async def settle(self) -> None:
        if self._threads is None:
            self._threads = threads_at_work()
            self.at_work.append(self._threads)
        waiting = asyncio.get_running_loop().create_future()
        self._settling.append(waiting)
        try:
            await waiting
        finally:
            if waiting in self._settling:
                self._settling.remove(waiting)

    def next_due(self) -> float | None:
        assert self._loop is not None
        return self._loop.next_due()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for all to settle."""
        return bool(self._settling)

    @property
    def pause_s(self) -> float:
        """For how long to wait for events from outside before `is_at_rest` is asked."""
        return max(self.cushion_s, LOOK_S) if self._is_at_work() else self.cushion_s

    @property
    def is_at_rest(self) -> bool:
        return not self._is_at_work()

    def settled(self) -> None:
        """Tell those who wait."""
        settling, self._settling = self._settling, []
        for waiting in settling:
            if not waiting.done():
                waiting.set_result(None)


class _Selector(selectors.DefaultSelector):
    """Waits for events; where a loop would sleep until its next timer, it does not."""

    def __init__(self, clock: AsyncioClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        while self._clock.is_awaited:
            events = super().select(self._clock.pause_s)
            if events:
                return events
            if self._clock.is_at_rest:
                self._clock.settled()
                return []
        return super().select(None)


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's loop by a virtual clock."""

    def __init__(self, clock: AsyncioClock) -> None:
        # Before the base, which asks for the time.
        self._clock = clock
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._number = itertools.count()
        #: How many calls asyncio's own threads are at, such as the look-up of a host's name.
        self.executing = 0
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._clock.now

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        heapq.heappush(self._timers, (when, next(self._number), handle))
        return handle

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        future = super().run_in_executor(executor, func, *args)
        self.executing += 1
        future.add_done_callback(self._executed)
        return future

    def _executed(self, _future: asyncio.Future[Any]) -> None:
        self.executing -= 1

    def next_due(self) -> float | None:
        """When the next timer fires that is still wanted."""
        timers, now = self._timers, self._clock.now
        while timers and (timers[0][2].cancelled() or timers[0][0] <= now):
            heapq.heappop(timers)
        return timers[0][0] if timers else None
