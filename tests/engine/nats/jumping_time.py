"""Time that jumps to the next timer as soon as all tasks wait, for tests without thread or socket.

However slow the machine is, nothing is late then, and nothing is waited for.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class Clock:
    """Seconds, as `time.monotonic` tells them."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def make_loop(self) -> asyncio.AbstractEventLoop:
        """An event loop by this clock."""
        return _Loop(self)


class _Selector(selectors.DefaultSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(None)
        events = super().select(0)
        if not events and timeout > 0:
            self._clock.now += timeout
        return events


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        # Before the base, which asks for the time.
        self._jumping = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._jumping.now
