"""How long ago something was, told after a suspend, a restart, or a reboot with a wrong clock.

Used for writes that a server keeps while it is cut off: they count from when they were made, on a
machine whose wall clock may be wrong by years. A moment is read from the clock that counts
suspended time; the wall clock is asked only where a reboot lies between, and believed only within
what is certain.
"""

from __future__ import annotations

import functools
import pathlib
import secrets
import sys
import time
from typing import NamedTuple

_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")


class Moment(NamedTuple):
    """When something was, as one machine saw it."""

    boot: str
    """Tells this run of the machine from all others."""
    up_s: float
    """Since the machine was started, suspended time included; seconds."""
    wall: float
    """By the wall clock, seconds since 1970."""


def now() -> Moment:
    return Moment(_boot(), up_s(), time.time())


def age_s(then: Moment, now: Moment, since_contact_s: float) -> float:
    """How old what was at `then` is at `now`, in seconds, never below 0.

    `since_contact_s`: it cannot be older than this, by a clock that is none of this machine's.
    """
    if then.boot != now.boot:
        # It was before this start of the machine, so it is no younger than that.
        return max(0.0, min(max(now.wall - then.wall, now.up_s), since_contact_s))
    return max(0.0, min(now.up_s - then.up_s, since_contact_s))


def up_s() -> float:
    """Since the machine was started, suspended time included; seconds."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    # macOS counts a suspension in this one, too, though not in `time.monotonic`.
    return time.clock_gettime(time.CLOCK_MONOTONIC)


@functools.cache
def _boot() -> str:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        # Then each run of the process counts as one of the machine.
        return secrets.token_hex(8)
