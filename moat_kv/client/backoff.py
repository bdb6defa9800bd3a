"""How long to wait before the next attempt to connect. Pure, but for chance."""

from __future__ import annotations

import random
from collections.abc import Callable

#: The first wait and the longest, in seconds. The first few fit into a session's grace (2 s).
FIRST_S = 0.05
LONGEST_S = 5.0
FACTOR = 2.0


class Backoff:
    """Waits that double, each spread over its upper half so that clients do not come in step."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._wait_s = FIRST_S
        self._waited_s = 0.0

    def next_s(self) -> float:
        """The next wait, in seconds."""
        self._waited_s = self._wait_s * (0.5 + 0.5 * self._chance())
        self._wait_s = min(self._wait_s * FACTOR, LONGEST_S)
        return self._waited_s

    def held(self, held_s: float) -> None:
        """A line was there for so many seconds. If that was longer than the wait for it, the next
        wait is short again; a server that always drops us at once is not hurried.
        """
        if held_s > self._waited_s:
            self._wait_s = FIRST_S
