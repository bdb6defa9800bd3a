"""When a job is due, from its entry and its state entry. Pure; `supervision` asks it.

Times are seconds since 1970 by the wall clock, because `target` is; nothing else uses that clock.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

#: The exponent of the back-off rises with each failure in a row, up to this.
MAX_BACKOFF = 20


class Spec(Protocol):
    """What a job's entry says of time; `job.JobSpec` has more."""

    @property
    def enabled(self) -> bool: ...
    @property
    def target(self) -> float | None: ...
    @property
    def delay(self) -> float: ...
    @property
    def backoff(self) -> float: ...
    @property
    def repeat(self) -> float: ...


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


def is_unfinished(past: Past) -> bool:
    """Whether the last run has a start and no end: it runs, or its runner died or was shut down."""
    if past.started is None:
        return False
    return past.stopped is None or past.stopped < past.started


def due(spec: Spec, past: Past) -> Due:
    """When the job starts next.

    Due when `target` is later than the last start; at once if the last run was cut off by its
    runner's end, or if somebody stopped it and allows it again; after a failure at its end + delay
    * backoff ** n with n failures in a row; after a success at its end + repeat. Without `target`,
    or disabled: never.
    """
    if not spec.enabled:
        return Due(None, "disabled")
    if spec.target is None:
        return Due(None, "no target")
    if past.started is None:
        return Due(spec.target, "target")
    if is_unfinished(past):
        # It goes on at once, wherever the target was moved to meanwhile.
        return Due(past.started, "the last run was cut off", True)
    assert past.stopped is not None  # else it is unfinished
    if spec.target > past.started:
        return Due(spec.target, "target")
    if past.interrupted:
        return Due(past.stopped, "the last run was stopped", True)
    if past.backoff:
        wait_s = backoff_s(spec.delay, spec.backoff, past.backoff)
        return Due(past.stopped + wait_s, f"back-off {past.backoff} after a failure", True)
    if spec.repeat:
        return Due(past.stopped + spec.repeat, "repeat", True)
    return Due(None, "done")


def backoff_s(delay_s: float, factor: float, failures: int) -> float:
    """How long to wait after so many failures in a row; at most a thousand years."""
    longest = 3.2e10
    try:
        return min(delay_s * factor ** min(failures, MAX_BACKOFF), longest)
    except OverflowError:
        return longest


def started_at(now: float, target: float | None) -> float:
    """The start to note for a run that begins now.

    Never before its target, so that a clock that is set back does not make the target due again.
    """
    return now if target is None else max(now, target)


def after_failure(failures: int) -> int:
    """The failures in a row after one more."""
    return min(failures + 1, MAX_BACKOFF)
