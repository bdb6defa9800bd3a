"""When a job is due, from its entry and its state entry. Pure; `supervision` asks it.

Times are seconds since 1970 by the wall clock, because `target` is; nothing else uses that clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from moat_kv_runner import recurrence

#: The exponent of the back-off rises with each failure in a row, up to this.
MAX_BACKOFF = 20
#: With `catch_up: skip`, what could not begin within this time of its occurrence is missed, in
#: seconds. It has room for another runner that takes over.
LATE_S = 60.0


class Spec(Protocol):
    """What a job's entry says of time; `job.JobSpec` has more."""

    @property
    def enabled(self) -> bool: ...
    @property
    def target(self) -> float | None: ...
    @property
    def cron(self) -> str | None: ...
    @property
    def zone(self) -> str | None: ...
    @property
    def between(self) -> Sequence[str]: ...
    @property
    def jitter(self) -> float: ...
    @property
    def catch_up(self) -> str: ...
    @property
    def overlap(self) -> str: ...
    @property
    def delay(self) -> float: ...
    @property
    def backoff(self) -> float: ...
    @property
    def max_delay(self) -> float | None: ...
    @property
    def max_failures(self) -> int: ...
    @property
    def repeat(self) -> float: ...
    @property
    def restart(self) -> float | None: ...


class Past(Protocol):
    """What is known of a job's earlier runs; `job.JobState` has more."""

    @property
    def started(self) -> float | None: ...
    @property
    def stopped(self) -> float | None: ...
    @property
    def backoff(self) -> int: ...
    @property
    def interrupted(self) -> bool:
        """The run did not end by itself: the job was disabled, or lost its target."""


class Due(NamedTuple):
    """When the job has to start, and why then; `at` None: not at all, as things are."""

    at: float | None
    why: str
    #: The job goes on by itself; whoever ran it keeps its claim until then.
    goes_on: bool = False
    #: It has failed too often, and waits for somebody to act.
    parked: bool = False


def is_unfinished(past: Past) -> bool:
    """Whether the last run has a start and no end: it runs, or its runner died or was shut down."""
    if past.started is None:
        return False
    return past.stopped is None or past.stopped < past.started


def due(spec: Spec, past: Past, now: float, *, key: bytes = b"") -> Due:
    """When the job starts next; `key` tells it from others whose jitter is to differ.

    Due when `target` is later than the last start; at once if the last run was cut off by its
    runner's end, or if somebody stopped it and allows it again; after a failure at its end + delay
    * backoff ** n with n failures in a row, unless these are too many; after a success at its end +
    repeat. With `cron` at its times from `target` on instead. Without `target`, or disabled: never.
    """
    if not spec.enabled:
        return Due(None, "disabled")
    if spec.target is None:
        return Due(None, "no target")
    if is_unfinished(past):
        # It goes on at once, wherever the target was moved to meanwhile.
        return Due(past.started, "the last run was cut off", True)
    started = past.started
    if spec.restart is not None and started is not None and spec.restart > started:
        return Due(spec.restart, "restart")
    if spec.cron is not None:
        return _shifted(spec, _by_cron(spec, spec.cron, past, now), key)
    if started is None or spec.target > started:
        return _shifted(spec, Due(spec.target, "target"), key)
    assert past.stopped is not None  # else it is unfinished
    if past.interrupted:
        return Due(past.stopped, "the last run was stopped", True)
    if past.backoff:
        return _shifted(spec, _after_failures(spec, past, past.stopped), key)
    if spec.repeat:
        return _shifted(spec, Due(past.stopped + spec.repeat, "repeat", True), key)
    return Due(None, "done")


def _by_cron(spec: Spec, cron: str, past: Past, now: float) -> Due:
    assert spec.target is not None
    started, stopped = past.started, past.stopped
    if started is None or stopped is None or spec.target > started:
        ref = spec.target - 1e-3  # the target itself may be one of its times
    elif spec.overlap == "skip":
        ref = max(started, stopped)
    else:
        ref = started
    if spec.catch_up == "skip":
        ref = max(ref, now - LATE_S)
    where = recurrence.zone(spec.zone)
    at = recurrence.next_after(cron, where, windows_of(spec), ref)
    if past.backoff and stopped is not None and not past.interrupted and spec.target <= stopped:
        again = _after_failures(spec, past, stopped)
        if again.at is None or at is None or again.at < at:
            return again
    return Due(at, "cron" if at is not None else "cron: no time is left", at is not None)


def _after_failures(spec: Spec, past: Past, stopped: float) -> Due:
    if is_parked(spec, past):
        why = f"parked after {past.backoff} failures in a row: restart it, or change its code"
        return Due(None, why, parked=True)
    wait_s = backoff_s(spec.delay, spec.backoff, past.backoff)
    if spec.max_delay is not None:
        wait_s = min(wait_s, spec.max_delay)
    return Due(stopped + wait_s, f"back-off {past.backoff} after a failure", True)


def _shifted(spec: Spec, found: Due, key: bytes) -> Due:
    """Into the next window, and by its jitter."""
    if found.at is None:
        return found
    at = found.at
    if spec.between:
        at = recurrence.open_from(windows_of(spec), recurrence.zone(spec.zone), at)
    return found._replace(at=at + jitter_s(key, found.at, spec.jitter))


def windows_of(spec: Spec) -> list[recurrence.Window]:
    """When a run of the job may begin; []: always."""
    return [recurrence.window(text) for text in spec.between]


def jitter_s(key: bytes, at: float, most_s: float) -> float:
    """How much later than at `at` a job of this key is due: 0 to `most_s`, the same everywhere."""
    if not most_s:
        return 0.0
    digest = hashlib.blake2b(key + repr(at).encode(), digest_size=8).digest()
    return most_s * int.from_bytes(digest) / 2**64


def is_parked(spec: Spec, past: Past) -> bool:
    """Whether it has failed as often as it may."""
    return 0 < spec.max_failures <= past.backoff


def overlapping(spec: Spec, started: float) -> float | None:
    """When a run that began then has to make room for the next; None: never."""
    if spec.cron is None or spec.overlap != "restart":
        return None
    where = recurrence.zone(spec.zone)
    return recurrence.next_after(spec.cron, where, windows_of(spec), started)


def backoff_s(delay_s: float, factor: float, failures: int) -> float:
    """How long to wait after so many failures in a row; at most a thousand years."""
    longest = 3.2e10
    try:
        return min(delay_s * factor ** min(failures, MAX_BACKOFF), longest)
    except OverflowError:
        return longest


def started_at(now: float, due_at: float | None) -> float:
    """The start to note for a run that begins now.

    Never before the time for which it is, so that a clock that is set back does not make the job
    due again.
    """
    return now if due_at is None else max(now, due_at)
