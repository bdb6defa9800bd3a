"""The same as `virtual_time`, for trio; imported only where trio is used."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import trio.testing

from moat_kv.testing import virtual_time


class TrioClock(virtual_time.VirtualClock, trio.abc.Clock):
    """See `virtual_time.VirtualClock`."""

    def __init__(self) -> None:
        super().__init__()
        self._threads: Callable[[], bool] | None = None
        # Beside the one that is looked at.
        self._looking = trio.CapacityLimiter(1)

    @property
    def backend_options(self) -> dict[str, Any]:
        return {"clock": self}

    def start_clock(self) -> None:
        """Nothing: it goes only when it is told to."""

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0.0 if deadline <= self.now else math.inf

    async def settle(self) -> None:
        if self._threads is None:
            self._threads = virtual_time.threads_at_work()
            self.at_work.append(self._threads)
        while True:
            await trio.testing.wait_all_tasks_blocked(self.cushion_s)
            if not self._is_at_work():
                return
            await trio.to_thread.run_sync(time.sleep, virtual_time.LOOK_S, limiter=self._looking)

    def next_due(self) -> float | None:
        left_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
        return None if math.isinf(left_s) else self.now + left_s
