"""Values on the command line: `-v NAME TEXT`, `-e NAME LITERAL`, `-p NAME PATH`, `-y [FILE]`.

`options` gives a command the four, `read` makes a `Change` of what was given, and a `Change` is
applied to the present value. The name `:` means the whole value; any other name is a path into it
and changes that attribute of a mapping, leaving the others. Pure, but for `-y` reading its file.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import asyncclick as click

from moat_kv import errors
from moat_kv.path import P, Path

_F = TypeVar("_F", bound=Callable[..., Any])

#: How long a literal may be, in characters.
LITERAL_LIMIT = 4096


#: Without the mark that some editors put first.
_ENCODING = "utf-8-sig"


class _Nothing:
    def __repr__(self) -> str:
        return "NOTHING"


#: No value at all: the whole of a change that only has attributes, an attribute that is taken away.
NOTHING: Final = _Nothing()

#: JSON's and YAML's words, beside Python's.
_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the options say of a value."""

    whole: Any = NOTHING
    attributes: Mapping[Path, Any] = field(default_factory=dict)
    """By their path into the value, none within another; `NOTHING` takes one away."""

    def __bool__(self) -> bool:
        return self.whole is not NOTHING or bool(self.attributes)

    @property
    def needs_old(self) -> bool:
        """Whether the present value has a part in the new one."""
        return self.whole is NOTHING

    def apply(self, old: Any = NOTHING) -> Any:
        """The new value. Raises BadValue if an attribute is wanted of what is no mapping."""
        value = old if self.whole is NOTHING else self.whole
        for name, attribute in self.attributes.items():
            value = _with(value, name, attribute, name)
        return {} if value is NOTHING else value


def _with(value: Any, rest: Path, attribute: Any, name: Path) -> Any:
    """A copy of a mapping with one attribute changed, however deep."""
    if not rest:
        return attribute
    if value is NOTHING:
        value = {}
    if not isinstance(value, dict):
        where = name % len(rest)
        place = f"{where} in the value" if where else "the value"
        raise errors.BadValue(f"{place} is no mapping, so it has no {rest[0]!r}", str(name))
    key, rest = rest[0], rest[1:]
    if attribute is NOTHING and key not in value:
        raise errors.NotFound("attribute", str(name))
    inner = _with(value.get(key, NOTHING), rest, attribute, name)
    if inner is NOTHING:
        return {each: item for each, item in value.items() if each != key}
    return {**value, key: inner}


def options(function: _F) -> _F:
    """Give a command the options; it gets them as `texts`, `literals`, `paths` and `yaml_file`."""
    pair: dict[str, Any] = {"nargs": 2, "multiple": True}
    for decorate in (
        click.option(
            "-y",
            "yaml_file",
            is_flag=False,
            flag_value="-",
            metavar="[FILE]",
            help="The whole value as YAML, from a file or (no FILE, or -) from standard input.",
        ),
        click.option("-p", "paths", metavar="NAME PATH", help="A path as a value.", **pair),
        click.option(
            "-e",
            "literals",
            metavar="NAME LITERAL",
            help="A literal: 12, 1.5, true, [1, 2], {'a': None}; - takes the attribute away.",
            **pair,
        ),
        click.option(
            "-v",
            "texts",
            metavar="NAME TEXT",
            help="A text. NAME is : for the whole value, else an attribute of a mapping.",
            **pair,
        ),
    ):
        function = decorate(function)
    return function


def read(
    texts: tuple[tuple[str, str], ...] = (),
    literals: tuple[tuple[str, str], ...] = (),
    paths: tuple[tuple[str, str], ...] = (),
    yaml_file: str | None = None,
) -> Change:
    """The change that the options describe. Raises UsageError; BadValue for a file's YAML."""
    whole: Any = NOTHING
    if yaml_file is not None:
        whole = _from_file(yaml_file)
    attributes: dict[Path, Any] = {}
    given: list[tuple[str, str, str, Callable[[str, str], Any]]]
    given = [("-v", *pair, _text) for pair in texts]
    given += [("-e", *pair, literal) for pair in literals]
    given += [("-p", *pair, _path) for pair in paths]
    for option, name, text, reader in given:
        what = f"{option} {name!r}"
        try:
            place = P(name)
        except errors.BadPath as exc:
            raise click.UsageError(f"{what}: {exc}") from exc
        remove = option == "-e" and text == "-"
        if place:
            _check_apart(place, attributes, what)
            attributes[place] = NOTHING if remove else reader(text, what)
        elif whole is not NOTHING:
            raise click.UsageError(f"{what}: the whole value is given twice")
        elif remove:
            raise click.UsageError(f"{what} '-': the whole value goes with the verb `delete`")
        else:
            whole = reader(text, what)
    return Change(whole=whole, attributes=attributes)


def _check_apart(place: Path, others: Mapping[Path, Any], what: str) -> None:
    for other in others:
        if place == other:
            raise click.UsageError(f"{what}: given twice")
        if place.startswith(other) or other.startswith(place):
            raise click.UsageError(f"{what}: {place} and {other} lie within each other")


def _text(text: str, what: str) -> str:
    return text


def _path(text: str, what: str) -> Path:
    try:
        return P(text)
    except errors.BadPath as exc:
        raise click.UsageError(f"{what}: {exc}") from exc


def literal(text: str, what: str = "literal") -> Any:
    """The value of a Python literal, or of `true`, `false`, `null`; nothing is evaluated.

    Raises UsageError, which starts with `what`.
    """
    if len(text) > LITERAL_LIMIT:
        raise click.UsageError(f"{what}: a literal has at most {LITERAL_LIMIT} characters; use -y")
    stripped = text.strip()
    if stripped in _WORDS:
        return _WORDS[stripped]
    try:
        value = ast.literal_eval(stripped)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as exc:
        raise click.UsageError(
            f"{what}: {_shortened(text)} is no literal; a text is given with -v"
        ) from exc
    _check_kind(value, what)
    return value


def _check_kind(value: Any, what: str) -> None:
    """Python has literals that the tree cannot hold."""
    if isinstance(value, complex | set | type(...)):
        raise click.UsageError(f"{what}: a {type(value).__name__} cannot be stored")
    if isinstance(value, list | tuple):
        for item in value:
            _check_kind(item, what)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, tuple):
                raise click.UsageError(f"{what}: a tuple cannot be a key")
            _check_kind(key, what)
            _check_kind(item, what)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _from_file(name: str) -> Any:
    from moat_kv_cli import yamltext

    return yamltext.from_yaml(read_text(name, "-y"))


def read_text(name: str, what: str) -> str:
    """A file's text, or standard input's for `-`. Raises UsageError, which starts with `what`."""
    try:
        if name == "-":
            return sys.stdin.buffer.read().decode(_ENCODING)
        with open(name, encoding=_ENCODING, newline="") as file:  # noqa: PTH123
            return file.read()
    except OSError as exc:
        raise click.UsageError(f"{what}: {name}: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise click.UsageError(f"{what}: {name} is not UTF-8: {exc}") from exc
