"""What the options of `run at PATH set` say of a job's time: when it starts, and again.

`at` gives them to its command; `attributes` makes of them what goes into the job's entry.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import asyncclick as click

from moat_kv import errors
from moat_kv_cli import command, gathering
from moat_kv_runner import attributes as job_attributes

#: Takes an attribute away.
NONE: Final = "-"
_AMOUNT = command.FiniteRange(min=0)


def _number(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """A number of seconds, or `-`."""
    if value is None or value == NONE:
        return value
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no number of seconds, nor -", ctx, param) from None


def _from_now(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """A number of seconds that leads to a moment, or `-`."""
    number = _number(ctx, param, value)
    if isinstance(number, float):
        try:
            job_attributes.checked("target", time.time() + number)
        except errors.BadValue:
            raise click.BadParameter(f"{value!r} is no time from now", ctx, param) from None
    return number


def _amount(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """A number of seconds that an attribute of this name may be, or `-`."""
    number = _number(ctx, param, value)
    return _checked(ctx, param, number) if isinstance(number, float) else number


def _text(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """What an attribute of this name may be, or `-`."""
    assert param.name is not None
    if value is None or value == NONE:
        return value
    return _checked(ctx, param, value)


def _windows(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> Any:
    if not value:
        return None
    return NONE if value == (NONE,) else list(_checked(ctx, param, value))


def _checked(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    assert param.name is not None
    try:
        return job_attributes.checked(param.name, value)
    except errors.BadValue as exc:
        raise click.BadParameter(exc.reason.partition(": ")[2], ctx, param) from None


_OPTIONS = (
    click.option(
        "-t",
        "--time",
        "target",
        callback=_from_now,
        metavar="SECONDS",
        help="Start so many seconds from now; -: do not start.",
    ),
    click.option(
        "-r",
        "--repeat",
        type=_AMOUNT,
        callback=_text,
        metavar="SECONDS",
        help="Again so long after its end; 0: no.",
    ),
    click.option(
        "--cron",
        callback=_text,
        metavar="TEXT",
        help="Start at these times: minute hour day month weekday; -: no more.",
    ),
    click.option(
        "--zone",
        callback=_text,
        metavar="NAME",
        help="The time zone of --cron and --between, as Europe/Berlin. [the runner's]",
    ),
    click.option(
        "--between",
        multiple=True,
        callback=_windows,
        metavar="WINDOW",
        help="Start only in such hours, as '08:00-18:00' or 'sat,sun 10:00-24:00'; repeatable.",
    ),
    click.option(
        "--jitter",
        type=_AMOUNT,
        callback=_text,
        metavar="SECONDS",
        help="Start up to so much later, so that not all jobs start at once.",
    ),
    click.option(
        "--catch-up",
        type=click.Choice(["once", "skip"]),
        help="Of --cron's times that passed without a runner: one run for all, or none. [once]",
    ),
    click.option(
        "--overlap",
        type=click.Choice(["skip", "queue", "restart"]),
        help="Of --cron's times that pass during a run: no run, one after it, or at once. [skip]",
    ),
    click.option(
        "-k",
        "--ok-after",
        type=_AMOUNT,
        callback=_text,
        metavar="SECONDS",
        help="A run that lasts this long has left earlier failures behind.",
    ),
    click.option(
        "-d",
        "--delay",
        type=_AMOUNT,
        callback=_text,
        metavar="SECONDS",
        help="Try again so long after a failure. [100]",
    ),
    click.option(
        "-b",
        "--backoff",
        type=_AMOUNT,
        callback=_text,
        metavar="FACTOR",
        help="The delay grows by this with each failure in a row. [1.1]",
    ),
    click.option(
        "--max-delay",
        callback=_amount,
        metavar="SECONDS",
        help="It does not grow above this; -: no limit.",
    ),
    click.option(
        "--max-failures",
        type=click.IntRange(min=0),
        metavar="N",
        help="Park the job after so many failures in a row; 0: never.",
    ),
)
#: The names of what `options` gives a command.
NAMES = (
    "target",
    "repeat",
    "cron",
    "zone",
    "between",
    "jitter",
    "catch_up",
    "overlap",
    "ok_after",
    "delay",
    "backoff",
    "max_delay",
    "max_failures",
)


def _timing(**said: Any) -> dict[str, Any]:
    timing = gathering.only_given(**said)
    if timing.get("repeat") and timing.get("cron", NONE) != NONE:
        raise command.fail("--cron, --repeat: a job has one of the two")
    return timing


#: Gives a command all of them; it gets one mapping of what was given, `timing`.
options = gathering.gathered("timing", _OPTIONS, NAMES, _timing)


def change(value: dict[str, Any], timing: Mapping[str, Any]) -> None:
    """Put what was given into a job's value.

    A cron expression counts from now on if nobody said since when.
    """
    now = time.time()
    for name, each in timing.items():
        if each == NONE:
            value.pop(name, None)
        else:
            value[name] = now + each if name == "target" else each
    if timing.get("cron", NONE) != NONE:
        if "target" not in timing:
            value.setdefault("target", now)
        if "repeat" not in timing:
            value.pop("repeat", None)
    elif timing.get("repeat") and "cron" not in timing:
        value.pop("cron", None)
