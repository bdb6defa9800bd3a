"""When jobs are due."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv_runner import schedule


@dataclass(frozen=True, kw_only=True)
class Spec:
    enabled: bool = True
    target: float | None = 1000.0
    delay: float = 100.0
    backoff: float = 1.1
    repeat: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Past:
    started: float | None = None
    stopped: float | None = None
    backoff: int = 0
    interrupted: bool = False


RAN = Past(started=1000.0, stopped=1010.0)
FAILED = Past(started=1000.0, stopped=1010.0, backoff=1)
STOPPED = Past(started=1000.0, stopped=1010.0, interrupted=True)
CUT_OFF = Past(started=1000.0)


@pytest.mark.parametrize(
    ("spec", "past", "at", "goes_on"),
    [
        pytest.param(Spec(target=None), Past(), None, False, id="no-target"),
        pytest.param(Spec(enabled=False), Past(), None, False, id="disabled"),
        pytest.param(Spec(), Past(), 1000.0, False, id="never-run"),
        pytest.param(Spec(), RAN, None, False, id="done"),
        pytest.param(Spec(target=1020.0), RAN, 1020.0, False, id="new-target"),
        pytest.param(Spec(target=999.0), RAN, None, False, id="old-target"),
        pytest.param(Spec(repeat=30), RAN, 1040.0, True, id="repeat-from-the-end"),
        pytest.param(Spec(), FAILED, 1010 + 100 * 1.1, True, id="back-off"),
        pytest.param(Spec(delay=2, backoff=3), FAILED, 1016.0, True, id="back-off-factor"),
        pytest.param(Spec(repeat=5), FAILED, 1120.0, True, id="back-off-before-repeat"),
        pytest.param(Spec(target=1015.0), FAILED, 1015.0, False, id="target-before-back-off"),
        pytest.param(Spec(), CUT_OFF, 1000.0, True, id="cut-off"),
        pytest.param(Spec(target=9e9), CUT_OFF, 1000.0, True, id="cut-off-before-target"),
        pytest.param(
            Spec(), Past(started=1000.0, stopped=990.0), 1000.0, True, id="cut-off-second-run"
        ),
        pytest.param(Spec(), STOPPED, 1010.0, True, id="stopped-and-allowed-again"),
        pytest.param(Spec(target=2000.0), STOPPED, 2000.0, False, id="stopped-and-new-target"),
        pytest.param(Spec(target=None), CUT_OFF, None, False, id="cut-off-without-target"),
        pytest.param(Spec(enabled=False, repeat=1), RAN, None, False, id="repeat-disabled"),
    ],
)
def test_job_is_due(spec: Spec, past: Past, at: float | None, goes_on: bool) -> None:
    due = schedule.due(spec, past)
    assert due.at == pytest.approx(at)
    assert due.goes_on is goes_on
    assert due.why


def test_back_off_rises_with_each_failure_up_to_twenty() -> None:
    waits = [schedule.backoff_s(100, 1.1, n) for n in range(30)]
    assert waits[:21] == pytest.approx([100 * 1.1**n for n in range(21)])
    assert set(waits[20:]) == {waits[20]}
    failures = 0
    for _ in range(30):
        failures = schedule.after_failure(failures)
    assert failures == schedule.MAX_BACKOFF


def test_back_off_never_overflows() -> None:
    assert schedule.backoff_s(1e300, 1e300, 20) == 3.2e10


def test_clock_set_back_does_not_make_a_target_due_twice() -> None:
    started = schedule.started_at(now=900.0, target=1000.0)
    assert schedule.due(Spec(), Past(started=started, stopped=started)).at is None


times = st.none() | st.floats(0, 1e6)


@given(
    target=times,
    started=times,
    stopped=times,
    failures=st.integers(0, 20),
    repeat=st.floats(0, 1e4),
    interrupted=st.booleans(),
)
def test_run_is_never_due_before_it_ended(
    target: float | None,
    started: float | None,
    stopped: float | None,
    failures: int,
    repeat: float,
    interrupted: bool,
) -> None:
    spec = Spec(target=target, repeat=repeat)
    past = Past(started=started, stopped=stopped, backoff=failures, interrupted=interrupted)
    due = schedule.due(spec, past)
    if due.at is not None and due.goes_on and not schedule.is_unfinished(past):
        assert past.stopped is not None
        assert due.at >= past.stopped
    if target is None:
        assert due.at is None
