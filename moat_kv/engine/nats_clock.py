"""NATS's time, told from when messages were stored, sent, acknowledged, and came here.

`engine.nats_feed` has one and tells it of what has come, `nats_touch` and `nats_publish` of what
was acknowledged, `nats_remote` asks it. However slow the line is, two things are certain. A message
came here after it was stored: NATS's time is no less than that. And what this server sends is
stored before it is acknowledged: NATS's time is between two limits, one round trip apart. What is
known is what all messages of late have in common, and how much that leaves open. Pure: times are
given, in seconds.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

#: A message counts for this long and up to twice as long, in seconds: NATS's clock may be set, and
#: another node's, which leads from then on, may be wrong, without any message that shows it.
COUNTS_S = 60.0
#: So many seconds a second its clock and this machine's may move apart.
DRIFT = 1e-4
#: So many acknowledged messages are remembered until they come here.
AWAITED = 16


class _Limits(NamedTuple):
    """By how much NATS's time is ahead of `up_s`: at least, and at most."""

    low_s: float = -math.inf
    high_s: float = math.inf


class _Round(NamedTuple):
    """A message of this server that was stored at `rev`, and when it was sent and acknowledged."""

    rev: int
    sent_s: float
    acknowledged_s: float


class Clock:
    """`up_s`: this machine's clock that never goes back, see `engine.age`."""

    def __init__(self) -> None:
        # What is known from this time span, and from the one before it.
        self._now, self._before = _Limits(), _Limits()
        self._since = -math.inf
        # The newest message that has come: its revision and when it was stored.
        self._rev, self._stored_at = 0, 0.0
        # In the order in which they were acknowledged.
        self._awaited: deque[_Round] = deque()

    @property
    def is_set(self) -> bool:
        """Whether anything is known."""
        return self._limits.low_s > -math.inf

    @property
    def uncertain_s(self) -> float:
        """By how much `now` may be wrong at most, in seconds."""
        limits = self._limits
        return limits.high_s - limits.low_s

    @property
    def is_waiting(self) -> bool:
        """Whether something was acknowledged that has not come yet: every message counts then."""
        return bool(self._awaited)

    @property
    def _limits(self) -> _Limits:
        return _Limits(
            max(self._now.low_s, self._before.low_s), min(self._now.high_s, self._before.high_s)
        )

    def now(self, up_s: float, wall_s: float) -> float:
        """NATS's time, seconds since 1970.

        `wall_s`: this machine's own, which is believed where it is possible: most are right.
        """
        low_s, high_s = self._limits
        if high_s == math.inf:
            return up_s + low_s  # late by what the quickest message took
        is_possible = low_s <= wall_s - up_s <= high_s
        return wall_s if is_possible else up_s + (low_s + high_s) / 2

    def came(self, rev: int, stored_at: float, up_s: float) -> None:
        """A message that NATS stored at `stored_at`, seconds since 1970, has come, old or new."""
        self._turn(up_s)
        if rev >= self._rev:
            self._rev, self._stored_at = rev, stored_at
        while self._awaited and self._awaited[0].rev <= rev:
            self._between(self._awaited.popleft(), rev, stored_at)
        self._know(stored_at - up_s)

    def acknowledged(self, rev: int, sent_s: float, acknowledged_s: float) -> None:
        """A message of this server is stored; when it was sent, and this was heard, by `up_s`."""
        round_ = _Round(rev, sent_s, acknowledged_s)
        if rev <= self._rev:
            self._turn(acknowledged_s)
            self._between(round_, self._rev, self._stored_at)
        elif len(self._awaited) < AWAITED:
            self._awaited.append(round_)

    def forget_revisions(self) -> None:
        """The log is another one; its time may be the same."""
        self._rev = 0
        self._awaited.clear()

    def _between(self, round_: _Round, rev: int, stored_at: float) -> None:
        """What follows from a message that is not older than one that was acknowledged."""
        is_same = rev == round_.rev
        low_s = stored_at - round_.acknowledged_s if is_same else -math.inf
        self._know(low_s, stored_at - round_.sent_s)

    def _know(self, low_s: float, high_s: float = math.inf) -> None:
        """NATS's time is ahead by so much at least, and at most."""
        if low_s <= self._now.low_s and high_s >= self._now.high_s:
            return
        limits = self._limits
        if low_s > limits.high_s or high_s < limits.low_s:
            # NATS's clock was set, or another node's, which leads from now on, is another one.
            self._now, self._before = _Limits(), _Limits()
        self._now = _Limits(max(self._now.low_s, low_s), min(self._now.high_s, high_s))

    def _turn(self, up_s: float) -> None:
        """Begin a new time span when it is time."""
        if up_s - self._since < COUNTS_S:
            return
        apart_s = DRIFT * (up_s - self._since)
        known = self._now
        self._before = _Limits(known.low_s - apart_s, known.high_s + apart_s)
        self._now, self._since = _Limits(), up_s
