"""What the options of `run at PATH set` say of a job's process: whether it has one, and its bounds.

`at` gives them to its command, `change` puts what was given into the job's entry. `-` takes away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import asyncclick as click

from moat_kv import config, errors
from moat_kv_cli import gathering
from moat_kv_runner import attributes as job_attributes
from moat_kv_runner.children import limits

#: Takes an attribute away.
NONE: Final = "-"


def _share(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return None if value is None else value if value == NONE else _checked(param, "share", value)


def _environment(
    ctx: click.Context, param: click.Parameter, pairs: tuple[tuple[str, str], ...]
) -> dict[str, str]:
    given = _by_name(param, pairs)
    _checked(param, "env", given)
    return given


def _limits(
    ctx: click.Context, param: click.Parameter, pairs: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    given = {
        name: text if text == NONE else _number(param, name, text)
        for name, text in _by_name(param, pairs).items()
    }
    # A name has to be right also where the limit is taken away.
    _checked(param, "limits", {name: 0 if each == NONE else each for name, each in given.items()})
    return given


def _by_name(param: click.Parameter, pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, text in pairs:
        if name in given:
            raise click.BadParameter(f"{name} is given twice", param=param)
        given[name] = text
    return given


def _number(param: click.Parameter, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise click.BadParameter(f"{name}: {text!r} is no number, nor -", param=param) from None
    return int(number) if number.is_integer() else number


def _checked(param: click.Parameter, name: str, value: Any) -> Any:
    try:
        return job_attributes.checked(name, value)
    except errors.BadValue as exc:
        reason = exc.reason.removeprefix(f"{name}.").removeprefix(f"{name}: ")
        raise click.BadParameter(reason, param=param) from None


_OPTIONS = (
    click.option(
        "--isolate",
        type=click.Choice([*config.ISOLATIONS, NONE]),
        help="Run it in a process of its own, or in its runner's; -: as group and runner say.",
    ),
    click.option(
        "--share",
        callback=_share,
        metavar="NAME",
        help="Async jobs of a group with one NAME have one process together; -: none.",
    ),
    click.option(
        "--env",
        nargs=2,
        multiple=True,
        callback=_environment,
        metavar="NAME TEXT",
        help="A variable of its process's environment; - takes it away; may be repeated.",
    ),
    click.option(
        "--limit",
        "limits",
        nargs=2,
        multiple=True,
        callback=_limits,
        metavar="NAME NUMBER",
        help=f"Of its process: {', '.join(limits.NAMES)}; 0: none, -: as usual; may be repeated.",
    ),
)
_NAMES = ("isolate", "share", "env", "limits")


#: Gives a command all of them; it gets one mapping of what was given, `process`.
options = gathering.gathered("process", _OPTIONS, _NAMES)


def change(value: dict[str, Any], process: Mapping[str, Any]) -> None:
    """Put what was given into a job's value; single variables and limits beside those there."""
    for name, each in process.items():
        if isinstance(each, Mapping):
            old = value.get(name)
            each = {**(old if isinstance(old, Mapping) else {}), **each}
            each = {key: item for key, item in each.items() if item != NONE}
        if each in (NONE, {}):
            value.pop(name, None)
        else:
            value[name] = each
