"""What each attribute of a job may be. Pure; `job` and `group_settings` read entries with it.

A check takes a value and the attribute's name; it returns the value as the job has it, or raises
BadValue that names the attribute and what would be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from moat_kv import config, errors
from moat_kv.path import P, Path
from moat_kv_runner import parting, recurrence
from moat_kv_runner.children import limits

#: Moments from the year 68 to 8307, in seconds since 1970, and spans of up to a thousand years: the
#: calendar bears all that is computed of them.
EARLIEST, LATEST = -6e10, 2e11
LONGEST_S = 3.2e10


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise errors.BadValue(f"{name}: a number is needed, not {value!r}")
    return float(value)


def _not_negative(value: Any, name: str) -> float:
    number = _number(value, name)
    if number < 0:
        raise errors.BadValue(f"{name}: 0 or more, not {value!r}")
    return number


def _span(value: Any, name: str) -> float:
    number = _not_negative(value, name)
    if number > LONGEST_S:
        raise errors.BadValue(f"{name}: at most {LONGEST_S:g} seconds, not {value!r}")
    return number


def _moment(value: Any, name: str) -> float:
    number = _number(value, name)
    if not EARLIEST <= number <= LATEST:
        what = f"seconds since 1970, {EARLIEST:g} to {LATEST:g}"
        raise errors.BadValue(f"{name}: {what}, not {value!r}")
    return number


def _path(value: Any, name: str) -> Path:
    if isinstance(value, str):
        try:
            value = P(value)
        except errors.BadPath as exc:
            raise errors.BadValue(f"{name}: {exc}") from exc
    if not isinstance(value, Path):
        raise errors.BadValue(f"{name}: a path is needed, not {value!r}")
    return value


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise errors.BadValue(f"{name}: a mapping from names is needed")
    return value


def _environment(value: Any, name: str) -> Mapping[str, str]:
    for key, text in _mapping(value, name).items():
        if not isinstance(text, str) or "\0" in key + text or "=" in key or not key:
            raise errors.BadValue(
                f"{name}: a mapping from names to texts is needed, not {key!r}: {text!r}"
            )
    return cast("Mapping[str, str]", value)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise errors.BadValue(f"{name}: true or false, not {value!r}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise errors.BadValue(f"{name}: a text is needed, not {value!r}")
    return value


def _name(value: Any, name: str) -> str:
    if not _text(value, name):
        raise errors.BadValue(f"{name}: a name is needed")
    return cast(str, value)


def _one_of(*choices: str) -> Any:
    def check(value: Any, name: str) -> str:
        if value not in choices:
            raise errors.BadValue(f"{name}: one of {', '.join(choices)}, not {value!r}")
        return cast(str, value)

    return check


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise errors.BadValue(f"{name}: a whole number from 0 is needed, not {value!r}")
    return value


def _cron(value: Any, name: str) -> str:
    text = _text(value, name)
    _right(recurrence.check_cron, text, name)
    return text


def _zone(value: Any, name: str) -> str:
    text = _text(value, name)
    _right(recurrence.zone, text, name)
    return text


def _windows(value: Any, name: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise errors.BadValue(f"{name}: a list of windows is needed, not {value!r}")
    for text in texts:
        _right(recurrence.window, _text(text, name), name)
    return tuple(texts)


def _tags(value: Any, name: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
        raise errors.BadValue(f"{name}: a list of tags is needed, not {value!r}")
    if "" in texts:
        raise errors.BadValue(f"{name}: a tag is not empty")
    return tuple(texts)


def _right(check: Callable[[str], object], text: str, name: str) -> None:
    try:
        check(text)
    except ValueError as exc:
        raise errors.BadValue(f"{name}: {exc}") from exc


_CHECKS: dict[str, Any] = {
    "code": _path,
    "data": _mapping,
    "target": _moment,
    "delay": _span,
    "backoff": _not_negative,
    "max_delay": _not_negative,
    "max_failures": _count,
    "repeat": _span,
    "cron": _cron,
    "zone": _zone,
    "between": _windows,
    "jitter": _span,
    "catch_up": _one_of("once", "skip"),
    "overlap": _one_of("skip", "queue", "restart"),
    "ok_after": _span,
    "require": _tags,
    "prefer": _tags,
    "enabled": _flag,
    "isolate": _one_of(*config.ISOLATIONS),
    "on_split": _one_of(*parting.POLICIES),
    "share": _name,
    "env": _environment,
    "limits": limits.checked,
    "restart": _moment,
    "info": lambda value, name: value,
}


def checked(name: str, value: Any) -> Any:
    """The value of an attribute of this name. Raises BadValue that names it."""
    return _CHECKS[name](value, name)
