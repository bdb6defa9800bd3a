"""How long to wait before the next attempt to connect. Pure, but for chance."""

from __future__ import annotations

import random
from collections.abc import Callable

#: The first wait and the longest, in seconds.
FIRST_S = 0.05
LONGEST_S = 5.0
FACTOR = 2.0
#: For so long no wait is longer than that: a session's grace is 2 s, and a server that is back
#: after one second of them must not be missed.
EAGER_S, EAGER_LONGEST_S = 2.0, 0.2


class Backoff:
    """Waits that double, each spread over its upper half so that clients do not come in step."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._wait_s = FIRST_S
        self._waited_s = 0.0
        # The sum of the waits since the last line that held.
        self._away_s = 0.0

    def next_s(self) -> float:
        """The next wait, in seconds."""
        self._waited_s = self._wait_s * (0.5 + 0.5 * self._chance())
        self._away_s += self._waited_s
        longest_s = LONGEST_S if self._away_s >= EAGER_S else EAGER_LONGEST_S
        self._wait_s = min(self._wait_s * FACTOR, longest_s)
        return self._waited_s

    def held(self, held_s: float) -> None:
        """A line was there for so many seconds. If that was longer than the wait for it, the next
        wait is short again; a server that always drops us at once is not hurried.
        """
        if held_s > self._waited_s:
            self._wait_s = FIRST_S
            self._away_s = 0.0
