"""When jobs are due."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

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
    max_delay: float | None = None
    max_failures: int = 0
    repeat: float = 0.0
    cron: str | None = None
    zone: str | None = "UTC"
    between: tuple[str, ...] = ()
    jitter: float = 0.0
    catch_up: str = "once"
    overlap: str = "skip"
    restart: float | None = None


@dataclass(frozen=True, kw_only=True)
class Past:
    started: float | None = None
    stopped: float | None = None
    backoff: int = 0
    interrupted: bool = False


NOW = 1050.0
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
    due = schedule.due(spec, past, NOW)
    assert due.at == pytest.approx(at)
    assert due.goes_on is goes_on
    assert due.why


def test_back_off_rises_with_each_failure_up_to_twenty() -> None:
    waits = [schedule.backoff_s(100, 1.1, n) for n in range(30)]
    assert waits[:21] == pytest.approx([100 * 1.1**n for n in range(21)])
    assert set(waits[20:]) == {waits[20]}


HOURLY = Spec(cron="0 * * * *", target=0.0)
HOUR = 3600.0
#: It was due at the first hour, and ended at the third.
LONG = Past(started=HOUR, stopped=3 * HOUR)


@pytest.mark.parametrize(
    ("spec", "past", "now", "at"),
    [
        pytest.param(HOURLY, Past(), 5.0, 0.0, id="the-target-is-a-time-of-its-own"),
        pytest.param(replace(HOURLY, target=1.0), Past(), 5.0, HOUR, id="from-the-target-on"),
        pytest.param(HOURLY, Past(started=HOUR, stopped=HOUR + 9), HOUR + 10, 2 * HOUR, id="next"),
        pytest.param(
            HOURLY, Past(started=HOUR, stopped=HOUR + 9), 9.5 * HOUR, 2 * HOUR, id="missed-once"
        ),
        pytest.param(
            replace(HOURLY, catch_up="skip"),
            Past(started=HOUR, stopped=HOUR + 9),
            9.5 * HOUR,
            10 * HOUR,
            id="missed-skipped",
        ),
        pytest.param(
            replace(HOURLY, catch_up="skip"),
            Past(started=HOUR, stopped=HOUR + 9),
            9 * HOUR + schedule.LATE_S - 1,
            9 * HOUR,
            id="a-little-late-is-not-missed",
        ),
        pytest.param(HOURLY, LONG, 3 * HOUR, 4 * HOUR, id="overlapped-skipped"),
        pytest.param(replace(HOURLY, overlap="queue"), LONG, 3 * HOUR, 2 * HOUR, id="queued"),
        pytest.param(
            HOURLY,
            Past(started=HOUR, stopped=HOUR + 1, backoff=1),
            HOUR + 2,
            HOUR + 111,
            id="tried-again-before-the-next",
        ),
        pytest.param(
            replace(HOURLY, delay=9e9),
            Past(started=HOUR, stopped=HOUR + 1, backoff=1),
            HOUR + 2,
            2 * HOUR,
            id="the-next-before-it-is-tried-again",
        ),
        pytest.param(
            HOURLY,
            Past(started=HOUR, stopped=HOUR + 1, interrupted=True),
            0,
            2 * HOUR,
            id="stopped",
        ),
        pytest.param(
            replace(HOURLY, target=HOUR + 5), LONG, 3 * HOUR, 2 * HOUR, id="new-target-counts-anew"
        ),
        pytest.param(
            replace(HOURLY, restart=HOUR + 5), LONG, 3 * HOUR, HOUR + 5, id="restart-is-at-once"
        ),
        pytest.param(
            replace(HOURLY, between=("10:00-11:00",)), LONG, 3 * HOUR, 10 * HOUR, id="in-a-window"
        ),
        pytest.param(
            replace(HOURLY, between=("10:30-10:45",)), LONG, 3 * HOUR, None, id="in-no-window"
        ),
    ],
)
def test_job_with_a_cron_expression_is_due(
    spec: Spec, past: Past, now: float, at: float | None
) -> None:
    assert schedule.due(spec, past, now).at == pytest.approx(at)


@pytest.mark.parametrize(
    ("spec", "past", "at"),
    [
        pytest.param(Spec(target=5.0), Past(), 10 * HOUR, id="target"),
        pytest.param(Spec(repeat=60), RAN, 10 * HOUR, id="repeat"),
        pytest.param(Spec(), FAILED, 10 * HOUR, id="back-off"),
        pytest.param(Spec(target=10.5 * HOUR), Past(), 10.5 * HOUR, id="within"),
        pytest.param(Spec(), CUT_OFF, 1000.0, id="what-was-cut-off-goes-on"),
    ],
)
def test_run_begins_in_a_window(spec: Spec, past: Past, at: float) -> None:
    assert schedule.due(replace(spec, between=("10:00-11:00",)), past, NOW).at == at


def test_too_many_failures_park_a_job_until_somebody_acts() -> None:
    spec = Spec(max_failures=3)
    assert not schedule.due(spec, replace(FAILED, backoff=2), NOW).parked
    parked = schedule.due(spec, replace(FAILED, backoff=3), NOW)
    assert (parked.at, parked.parked) == (None, True)
    assert "3 failures" in parked.why
    assert schedule.due(replace(HOURLY, max_failures=3), replace(FAILED, backoff=3), NOW).parked
    assert schedule.due(replace(spec, target=1020.0), replace(FAILED, backoff=3), NOW).at == 1020
    assert schedule.due(replace(spec, restart=1020.0), replace(FAILED, backoff=3), NOW).at == 1020


def test_wait_after_a_failure_has_a_ceiling() -> None:
    late = replace(FAILED, backoff=20)
    assert schedule.due(Spec(max_delay=120.0), late, NOW).at == 1010 + 120


def test_jitter_is_the_same_everywhere_and_spreads_jobs() -> None:
    spec = Spec(jitter=60.0)
    found = [schedule.due(spec, Past(), NOW, key=b"job %d" % n).at for n in range(200)]
    assert found == [schedule.due(spec, Past(), NOW, key=b"job %d" % n).at for n in range(200)]
    delays = [at - 1000.0 for at in found if at is not None]
    assert len(delays) == 200
    assert 0 <= min(delays) < 6
    assert 54 < max(delays) < 60


def test_run_makes_room_for_the_next_only_if_it_is_to() -> None:
    assert schedule.overlapping(replace(HOURLY, overlap="restart"), HOUR + 5) == 2 * HOUR
    assert schedule.overlapping(HOURLY, HOUR + 5) is None


#: A year's two changes of the clock, in local dates, for the year 2026.
CHANGES = [
    ("Europe/Berlin", "2026-03-29", "2026-10-25"),
    ("America/New_York", "2026-03-08", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-10-04", "2026-04-05"),  # by half an hour
    ("America/St_Johns", "2026-03-08", "2026-11-01"),
    ("Pacific/Auckland", "2026-09-27", "2026-04-05"),
]
WEEKS = [(zone, day) for zone, *days in CHANGES for day in days]


def _runs(cron: str, zone: str, begin: float, end: float) -> list[float]:
    """The starts of a job that takes ten seconds a run, as its supervisor would have them."""
    spec = Spec(cron=cron, zone=zone, target=begin)
    past, now, found = Past(), begin, list[float]()
    while True:
        due = schedule.due(spec, past, now)
        assert due.at is not None
        now = max(now, due.at)
        if now >= end:
            return found
        found.append(now)
        past, now = Past(started=now, stopped=now + 10), now + 10


def _week(zone: str, day: str) -> tuple[datetime, datetime]:
    """The week around a day: its begin and end, local."""
    middle = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    return middle - timedelta(days=3), middle + timedelta(days=4)


@pytest.mark.parametrize(("zone", "day"), WEEKS)
@pytest.mark.parametrize("minute", [0, 1, 2, 15, 30, 59])
def test_daily_job_runs_once_a_day_whatever_clocks_do(zone: str, day: str, minute: int) -> None:
    begin, end = _week(zone, day)
    expected = []
    for nth in range(7):
        local = (begin + timedelta(days=nth)).replace(hour=2, minute=minute)
        at = local.timestamp()
        if datetime.fromtimestamp(at, local.tzinfo).replace(tzinfo=None) != local.replace(
            tzinfo=None
        ):
            # The clocks leave it out: right after the gap, the first minute that there is.
            before = local.replace(hour=1, minute=59).timestamp()
            at = before + 60
        expected.append(at)
    assert _runs(f"{minute} 2 * * *", zone, begin.timestamp(), end.timestamp()) == expected


@pytest.mark.parametrize(("zone", "day"), WEEKS)
def test_job_of_every_hour_runs_in_each_hour_that_there_is(zone: str, day: str) -> None:
    begin, end = (each.timestamp() for each in _week(zone, day))
    where = ZoneInfo(zone)
    minutes = range(int(begin), int(end), 60)
    expected = [at for at in minutes if datetime.fromtimestamp(at, where).minute == 0]
    assert _runs("0 * * * *", zone, begin, end) == expected


def test_back_off_never_overflows() -> None:
    assert schedule.backoff_s(1e300, 1e300, 20) == 3.2e10


def test_clock_set_back_does_not_make_a_target_due_twice() -> None:
    started = schedule.started_at(900.0, 1000.0)
    assert schedule.due(Spec(), Past(started=started, stopped=started), NOW).at is None


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
    due = schedule.due(spec, past, NOW)
    if due.at is not None and due.goes_on and not schedule.is_unfinished(past):
        assert past.stopped is not None
        assert due.at >= past.stopped
    if target is None:
        assert due.at is None
