"""Windows of the day and cron expressions, as users write them."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv_runner import recurrence

BERLIN = ZoneInfo("Europe/Berlin")


def _at(text: str, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


@pytest.mark.parametrize(
    ("text", "days", "begin", "end"),
    [
        ("08:00-18:30", range(7), 480, 1110),
        ("22:00 - 6:00", range(7), 1320, 360),
        ("mon-fri 08:00-18:00", range(5), 480, 1080),
        ("SAT,sun 10:00-24:00", (5, 6), 600, 1440),
        ("fri-mon 0:00-24:00", (4, 5, 6, 0), 0, 1440),
        ("  tue  1:00-2:00  ", (1,), 60, 120),
    ],
)
def test_window_is_read(text: str, days: range, begin: int, end: int) -> None:
    assert recurrence.window(text) == recurrence.Window(frozenset(days), begin, end)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no window such as"),
        ("8-18", "no window such as"),
        ("08:00-18:60", "no time 18:60"),
        ("24:01-25:00", "no time 24:01"),
        ("24:00-01:00", "before 24:00"),
        ("08:00-08:00", "has no length"),
        ("montag 08:00-09:00", "'montag' is no day"),
        ("mon- 08:00-09:00", "'' is no day"),
    ],
)
def test_bad_window_is_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        recurrence.window(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "number of fields"),
        ("* * * *", "number of fields"),
        ("61 * * * *", "bad minute"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 0 * * FOO", "bad day-of-week"),
    ],
)
def test_bad_cron_expression_is_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        recurrence.check_cron(text)


def test_unknown_zone_is_named() -> None:
    for name in ("Europe/Nowhere", "../etc/passwd", "", "/etc/localtime", "\0"):
        with pytest.raises(ValueError, match="there is no time zone"):
            recurrence.zone(name)
    assert recurrence.zone(None) is not None


@pytest.mark.parametrize(
    ("window", "at", "expected"),
    [
        ("08:00-18:00", "2026-06-01T07:59:59", "2026-06-01T08:00"),
        ("08:00-18:00", "2026-06-01T08:00", "2026-06-01T08:00"),
        ("08:00-18:00", "2026-06-01T17:59:59", "2026-06-01T17:59:59"),
        ("08:00-18:00", "2026-06-01T18:00", "2026-06-02T08:00"),
        ("22:00-06:00", "2026-06-01T05:59", "2026-06-01T05:59"),
        ("22:00-06:00", "2026-06-01T12:00", "2026-06-01T22:00"),
        ("mon 22:00-06:00", "2026-06-02T05:00", "2026-06-02T05:00"),  # it began on Monday
        ("mon 22:00-06:00", "2026-06-01T05:00", "2026-06-01T22:00"),
        ("mon 08:00-09:00", "2026-06-01T09:00", "2026-06-08T08:00"),
        ("sat,sun 10:00-24:00", "2026-06-01T12:00", "2026-06-06T10:00"),
        # Clocks leave out 02:00 to 03:00; the window is taken an hour later.
        ("02:10-02:50", "2026-03-29T01:00", "2026-03-29T03:10"),
        ("02:10-02:50", "2026-03-29T03:49", "2026-03-29T03:49"),
        ("02:10-02:50", "2026-03-29T03:50", "2026-03-30T02:10"),
    ],
)
def test_next_time_in_a_window(window: str, at: str, expected: str) -> None:
    windows = [recurrence.window(window)]
    assert recurrence.open_from(windows, BERLIN, _at(at)) == _at(expected)


def test_window_in_the_hour_that_comes_twice_lasts_until_its_second_end() -> None:
    windows = [recurrence.window("02:10-02:50")]
    for fold in (0, 1):
        at = _at("2026-10-25T02:49", fold)
        assert recurrence.open_from(windows, BERLIN, at) == at
    after = _at("2026-10-25T02:50", 1)
    assert recurrence.open_from(windows, BERLIN, after) == _at("2026-10-26T02:10")


def test_time_is_taken_from_the_first_window_that_opens() -> None:
    windows = [recurrence.window("20:00-21:00"), recurrence.window("12:00-13:00")]
    assert recurrence.open_from(windows, BERLIN, _at("2026-06-01T09:00")) == _at("2026-06-01T12:00")
    assert recurrence.open_from([], BERLIN, 5.5) == 5.5


def test_expression_in_a_repeated_hour_does_not_run_again() -> None:
    first = _at("2026-10-25T02:30")
    assert recurrence.next_after("30 2 * * *", BERLIN, [], first - 1) == first
    for ref in (first, first + 1, _at("2026-10-25T02:10", 1), _at("2026-10-25T02:40", 1)):
        assert recurrence.next_after("30 2 * * *", BERLIN, [], ref) == _at("2026-10-26T02:30")


def test_seconds_may_come_first() -> None:
    assert recurrence.next_after("*/5 * * * * *", UTC, [], 12.0) == 15.0


def test_expression_that_no_window_lets_through_is_never_due() -> None:
    windows = [recurrence.window("08:00-09:00")]
    assert recurrence.next_after("0 3 * * *", UTC, windows, 0.0) is None


@given(
    at=st.floats(1.7e9, 1.9e9),
    begin=st.integers(0, 1439),
    end=st.integers(0, 1440),
    days=st.sets(st.integers(0, 6), min_size=1),
)
def test_next_time_is_open_and_not_before(at: float, begin: int, end: int, days: set[int]) -> None:
    windows = [recurrence.Window(frozenset(days), begin, end)]
    if begin == end:
        return
    found = recurrence.open_from(windows, BERLIN, at)
    assert at <= found <= at + 9 * 86400
    assert recurrence.open_from(windows, BERLIN, found) == found
