"""How long to wait before the next attempt to connect. Pure, but for chance."""

from __future__ import annotations

import random
from collections.abc import Callable

#: The first wait and the longest, in seconds. The first few fit into a session's grace (2 s).
FIRST_S = 0.05
LONGEST_S = 5.0
FACTOR = 2.0
#: A line that held for so many seconds is no reason to go on waiting longer and longer.
HEALTHY_S = 5.0


class Backoff:
    """Waits that double, each spread over its upper half so that clients do not come in step."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._wait_s = FIRST_S

    def next_s(self) -> float:
        """The next wait, in seconds."""
        wait_s = self._wait_s * (0.5 + 0.5 * self._chance())
        self._wait_s = min(self._wait_s * FACTOR, LONGEST_S)
        return wait_s

    def reset(self) -> None:
        self._wait_s = FIRST_S
