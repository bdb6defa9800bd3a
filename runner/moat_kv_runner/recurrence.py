"""Times that recur: cron expressions, windows of the day, and the zones of both. Pure.

`job` checks what users write with it, `schedule` asks when a job is due. All times that come in and
go out are seconds since 1970; local time appears between the two only. Which lines of a cron
expression hold, and what becomes of them when clocks change, is as in Debian's cron (`cronsim`): a
time that the spring leaves out is run right after the gap, one that the autumn repeats is run once.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Sequence
from datetime import date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple

import cronsim
import tzlocal

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MIN = 24 * 60
#: After so many occurrences that no window lets through, there is none.
_LEAPS = 750
_HOUR = r"(\d{1,2}):(\d{2})"
_WINDOW = re.compile(rf"(?:([a-z,-]+) +)?{_HOUR} *- *{_HOUR}")


class Window(NamedTuple):
    """A part of the day; it ends on the next day if its end is not after its begin."""

    days: frozenset[int]
    """On which it begins; Monday is 0."""
    begin_min: int
    end_min: int


def zone(name: str | None) -> tzinfo:
    """The time zone of this name, such as `Europe/Berlin`; None: this machine's.

    Raises ValueError.
    """
    if name is None:
        try:
            return tzlocal.get_localzone()
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise ValueError(f"this machine's time zone cannot be told ({exc}); name one") from exc
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"there is no time zone {name!r}; names are such as Europe/Berlin or UTC"
        ) from None


# Windows ----------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def window(text: str) -> Window:
    """`08:00-18:30`, `22:00-06:00`, `mon-fri 08:00-18:00` or `sat,sun 10:00-24:00`.

    Raises ValueError.
    """
    found = _WINDOW.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is no window such as 08:00-18:00 or mon-fri 22:00-06:00")
    begin_min = _minutes(found[2], found[3], text)
    end_min = _minutes(found[4], found[5], text)
    if begin_min == _DAY_MIN:
        raise ValueError(f"{text!r}: a window begins before 24:00")
    if begin_min == end_min:
        raise ValueError(f"{text!r} has no length; 00:00-24:00 is the whole day")
    return Window(_days(found[1], text), begin_min, end_min)


def _minutes(hours: str, minutes: str, text: str) -> int:
    total = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or total > _DAY_MIN:
        raise ValueError(f"{text!r}: there is no time {hours}:{minutes}")
    return total


def _days(text: str | None, whole: str) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        names = (first, last) if dash else (first,)
        for name in names:
            if name not in DAYS:
                raise ValueError(f"{whole!r}: {name!r} is no day; days are {', '.join(DAYS)}")
        here = DAYS.index(first)
        count = (DAYS.index(last) - here) % 7 if dash else 0
        found.update((here + n) % 7 for n in range(count + 1))
    return frozenset(found)


def open_from(windows: Sequence[Window], where: tzinfo, at: float) -> float:
    """`at` if a window is open then, or there are none; else when the next one opens."""
    if not windows:
        return at
    today = datetime.fromtimestamp(at, where).date()
    openings = []
    for offset in range(-1, 9):  # a window of yesterday may be open yet
        day = today + timedelta(days=offset)
        for each in windows:
            if day.weekday() not in each.days:
                continue
            begin, end = _bounds(each, day, where)
            if begin <= at < end:
                return at
            if begin > at:
                openings.append(begin)
    return min(openings)


def _bounds(each: Window, day: date, where: tzinfo) -> tuple[float, float]:
    end_day = day if each.end_min > each.begin_min else day + timedelta(days=1)
    begin = _moment(day, each.begin_min, where, fold=0)
    return begin, _moment(end_day, each.end_min, where, fold=1)


def _moment(day: date, minutes: int, where: tzinfo, *, fold: int) -> float:
    """A local time; one that clocks leave out is taken as much later as they are set forward.

    `fold`: which of two, where clocks repeat it.
    """
    local = datetime(day.year, day.month, day.day) + timedelta(minutes=minutes)
    at = local.replace(tzinfo=where, fold=fold).timestamp()
    if datetime.fromtimestamp(at, where).replace(tzinfo=None) == local:
        return at
    return local.replace(tzinfo=where, fold=0).timestamp()


# Cron -------------------------------------------------------------------------------------------


def check_cron(text: str) -> None:
    """Raises ValueError unless it is a cron expression that is ever due."""
    try:
        next(cronsim.CronSim(text, datetime(2024, 1, 1)))
    except cronsim.CronSimError as exc:
        raise ValueError(
            f"{text!r}: {str(exc).lower()}; five fields are needed: minute, hour, day of the month,"
            " month, day of the week (with six, the first is the second)"
        ) from exc
    except StopIteration:
        raise ValueError(f"{text!r} is never due") from None


def next_after(cron: str, where: tzinfo, windows: Sequence[Window], ref: float) -> float | None:
    """The first occurrence later than `ref` for which a window is open; None: there is none."""
    for _ in range(_LEAPS):
        found = _next_after(cron, where, ref)
        if found is None:
            return None
        opens = open_from(windows, where, found)
        if opens == found:
            return found
        ref = opens - 1e-3  # the moment at which it opens counts
    return None


def _next_after(cron: str, where: tzinfo, ref: float) -> float | None:
    for found in cronsim.CronSim(cron, datetime.fromtimestamp(ref, where)):
        at = found.timestamp()
        # In an hour that comes twice, the expression's times belong to the first.
        if at > ref:
            return at
    return None
