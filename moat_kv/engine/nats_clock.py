"""NATS's time, from when it stored each message and when that came here.

Asked by `engine.nats_remote`, told by it of what has come. A message takes its time, over a slow
line a second or more, after a break as long as that lasted; so the one that was quickest of late is
believed, and not the one that came last. Pure: times are given, in seconds.
"""

from __future__ import annotations

import math

#: A message counts for this long and up to twice as long, in seconds: NATS's own clock may be set,
#: and another node's, which leads from then on, may be wrong.
COUNTS_S = 60.0


class Clock:
    """`up_s`: this machine's clock that never goes back, see `engine.age`."""

    def __init__(self) -> None:
        # By how much NATS's time is ahead of `up_s`, at least: in this time span and in the last.
        self._ahead_s = self._ahead_before_s = -math.inf
        self._since = -math.inf

    @property
    def is_set(self) -> bool:
        return self._ahead_s > -math.inf

    def came(self, stored_at: float, up_s: float) -> None:
        """A message that NATS stored at `stored_at`, seconds since 1970, has come."""
        ahead_s = stored_at - up_s
        if up_s - self._since >= COUNTS_S:
            self._since = up_s
            self._ahead_before_s, self._ahead_s = self._ahead_s, ahead_s
        else:
            self._ahead_s = max(self._ahead_s, ahead_s)

    def now(self, up_s: float) -> float:
        """NATS's time, seconds since 1970; late by what the quickest message took."""
        return up_s + max(self._ahead_s, self._ahead_before_s)
