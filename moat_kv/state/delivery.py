"""Telling subscribers of changes: in order, one at a time for each model, where they want it.

`slot` puts notices in as it takes new states; a `State` that held the lock makes them ready when it
has let go of it. Each model has an `Outgoing`, which hands one call after the other to the
subscriber's `Venue` (`venues`): the event loop it subscribed from, or, if that does not run, one
thread for all. A subscriber that fails is logged and counted, and the next one has its turn.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moat_kv.state import copying, venues

if TYPE_CHECKING:
    from moat_kv.state import loops
    from moat_kv.state.model import StateModel
    from moat_kv.state.slot import Slot, Subscriber

logger = logging.getLogger(__name__)

#: So many changes of a model wait for slow subscribers; those after them are told as one.
WAITING_LIMIT = 1_000


@dataclass(kw_only=True)
class Notice:
    """A change that is to be told."""

    new: StateModel
    old: StateModel | None
    rev: int
    ready: bool
    only: Subscriber | None


class Call:
    """One subscriber's turn."""

    def __init__(self, outgoing: Outgoing, subscriber: Subscriber, notice: Notice) -> None:
        self.outgoing = outgoing
        self.subscriber = subscriber
        self.venue = subscriber.venue
        self._notice = notice
        self._began = 0.0
        self.has_begun = False

    def invoke(self) -> Any:
        """The callback's result, which may have to be awaited."""
        self.has_begun = True
        self._began = time.perf_counter()
        given: list[StateModel | None] = [_for_user(self._notice.new, self._notice.rev)]
        if self.subscriber.old:
            old = self._notice.old
            given.append(None if old is None else _for_user(old, 0))
        return self.subscriber.callback(*given)

    def failed(self, exc: BaseException) -> None:
        slot = self.outgoing.slot
        slot.metrics.callback_failures.inc()
        logger.error(
            "subscriber %r of %s failed", self.subscriber.callback, slot.label, exc_info=exc
        )

    def finished(self) -> None:
        if self._began:
            taken_s = time.perf_counter() - self._began
            self.outgoing.slot.metrics.callback_latency.observe(taken_s)
        self.outgoing.finished(self)

    async def run(self) -> None:
        """In an event loop."""
        try:
            result = self.invoke()
            if inspect.isawaitable(result):
                await result
        except Exception as exc:
            self.failed(exc)
        finally:
            self.finished()

    def run_in_thread(self, run_async: Callable[[Awaitable[Any]], Any]) -> None:
        """In the background thread."""
        try:
            result = self.invoke()
            if inspect.isawaitable(result):
                run_async(result)
        except Exception as exc:
            self.failed(exc)
        finally:
            self.finished()


def _for_user(kept: StateModel, rev: int) -> StateModel:
    made = copying.copy_of_object(kept)
    made.__dict__["_moat_rev"] = rev
    return made


class Outgoing:
    """What one model's subscribers are still to be told."""

    def __init__(self, slot: Slot) -> None:
        self._slot = weakref.ref(slot)
        self._label = slot.label
        self._mutex = threading.Lock()
        self._notices: deque[Notice] = deque()
        # The calls of the notice that is being told, and the one that runs.
        self._calls: deque[Call] = deque()
        self._running: Call | None = None
        self._wakers: list[loops.Waker] = []

    @property
    def slot(self) -> Slot:
        slot = self._slot()
        assert slot is not None
        return slot

    def put(
        self,
        new: StateModel,
        old: StateModel | None,
        rev: int,
        *,
        ready: bool = True,
        only: Subscriber | None = None,
    ) -> None:
        """Add a change. The slot's mutex is held, so the order is that of the states."""
        with self._mutex:
            last = self._notices[-1] if self._notices else None
            if last is not None and last.only is only is None and self._is_full():
                last.new, last.rev = new, rev
                self.slot.metrics.merged_notices.inc()
                return
            self._notices.append(Notice(new=new, old=old, rev=rev, ready=ready, only=only))

    def _is_full(self) -> bool:
        return len(self._notices) >= WAITING_LIMIT

    def release(self) -> None:
        """All that was put may be told."""
        with self._mutex:
            for notice in self._notices:
                notice.ready = True
        self.go_on()

    def go_on(self) -> None:
        """Start the next call, if none runs."""
        while True:
            with self._mutex:
                call = self._running
                if call is None:
                    call = self._running = self._next()
                    if call is None:
                        wakers, self._wakers = self._wakers, []
                        break
                elif call.venue.is_over() and call.has_begun:
                    logger.error("the event loop of a subscriber of %s ended in it", self._label)
                    self._running = None
                    continue
                elif call.has_begun or call.venue.is_running():
                    return
                else:
                    call.venue = venues.background  # its loop ended before its turn came
            if not call.venue.run(call):
                call.venue = venues.background
                venues.background.run(call)
            return
        for waker in wakers:
            waker.wake()

    def _next(self) -> Call | None:
        while not self._calls:
            if not self._notices or not self._notices[0].ready:
                return None
            notice = self._notices.popleft()
            slot = self.slot
            whom = slot.subscribers if notice.only is None else (notice.only,)
            self._calls.extend(
                Call(self, each, notice) for each in whom if self._wants(each, notice)
            )
        return self._calls.popleft()

    def _wants(self, subscriber: Subscriber, notice: Notice) -> bool:
        try:
            return subscriber.cares(notice.new, notice.old)
        except Exception as exc:
            Call(self, subscriber, notice).failed(exc)
            return False

    def finished(self, call: Call) -> None:
        with self._mutex:
            if self._running is not call:
                return  # it had been given up
            self._running = None
        self.go_on()

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing may be told."""
        with self._mutex:
            return self._running is None and not self._calls and not self._has_ready()

    def _has_ready(self) -> bool:
        return bool(self._notices) and self._notices[0].ready

    def wake_when_idle(self, waker: loops.Waker) -> bool:
        """Have it woken; False: it is idle already."""
        self.go_on()
        with self._mutex:
            if self._running is None and not self._calls and not self._has_ready():
                return False
            self._wakers.append(waker)
            return True
