"""What a type annotation demands of a value, and how such a value is kept.

Made once for each declared attribute, by `shapes`. A rule checks values, turns them into what JSON
carries and back, and describes itself as JSON Schema. Nothing is converted while checking: a text
is no number.
"""

from __future__ import annotations

import base64
import collections.abc
import dataclasses
import datetime
import enum
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from moat_kv.path import P, Path

Check: TypeAlias = "Callable[[Any], bool]"


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a value must be. `encode` and `decode` raise what a wrong value makes them raise."""

    name: str
    check: Check
    schema: dict[str, Any]
    encode: Callable[[Any], Any] = _same
    decode: Callable[[Any], Any] = _same

    @property
    def is_plain(self) -> bool:
        """JSON carries the value as it is."""
        return self.encode is _same


def _simple(kind: type, schema: dict[str, Any], **rest: Any) -> Rule:
    return Rule(
        name=kind.__name__, check=lambda value: isinstance(value, kind), schema=schema, **rest
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TEXT = {"type": "string"}
ANYTHING = Rule(name="Any", check=lambda value: True, schema={})
_RULES: dict[Any, Rule] = {
    Any: ANYTHING,
    object: ANYTHING,
    type(None): Rule(name="None", check=lambda value: value is None, schema={"type": "null"}),
    bool: _simple(bool, {"type": "boolean"}),
    int: Rule(name="int", check=_is_int, schema={"type": "integer"}),
    float: Rule(name="float", check=_is_number, schema={"type": "number"}),
    str: _simple(str, _TEXT),
    bytes: _simple(
        bytes,
        _TEXT | {"contentEncoding": "base64"},
        encode=lambda value: base64.b64encode(value).decode(),
        decode=lambda text: base64.b64decode(text, validate=True),
    ),
    datetime.datetime: _simple(
        datetime.datetime,
        _TEXT | {"format": "date-time"},
        encode=datetime.datetime.isoformat,
        decode=datetime.datetime.fromisoformat,
    ),
    datetime.date: _simple(
        datetime.date,
        _TEXT | {"format": "date"},
        encode=datetime.date.isoformat,
        decode=datetime.date.fromisoformat,
    ),
    datetime.timedelta: _simple(
        datetime.timedelta,
        {"type": "number", "description": "seconds"},
        encode=datetime.timedelta.total_seconds,
        decode=lambda seconds: datetime.timedelta(seconds=seconds),
    ),
    Path: _simple(Path, _TEXT, encode=str, decode=P),
}


def rule_of(annotation: Any) -> Rule:
    """The rule of an annotation. Raises TypeError if values of it cannot be kept."""
    found = _RULES.get(annotation) if isinstance(annotation, collections.abc.Hashable) else None
    if found is not None:
        return found
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return rule_of(args[0])
    if origin is typing.Union or origin is types.UnionType:
        return _union(args)
    if origin is typing.Literal:
        return _literal(args)
    kind = origin or annotation
    if kind in (list, set, frozenset, collections.abc.Sequence):
        return _many(list if kind is collections.abc.Sequence else kind, args)
    if kind is tuple:
        return _tuple(args)
    if kind in (dict, collections.abc.Mapping):
        return _mapping(args)
    if isinstance(kind, type):
        if issubclass(kind, enum.Enum):
            return _enum(kind)
        if dataclasses.is_dataclass(kind):
            return _record(kind, ((f.name, f.type) for f in dataclasses.fields(kind)))
        if hasattr(kind, "__attrs_attrs__"):
            return _record(kind, ((a.name, a.type) for a in kind.__attrs_attrs__))
    raise TypeError(f"values of type {annotation!r} cannot be kept")


def _union(args: tuple[Any, ...]) -> Rule:
    rules = [rule_of(each) for each in args]
    checks = [rule.check for rule in rules]
    made = Rule(
        name=" | ".join(rule.name for rule in rules),
        check=lambda value: any(check(value) for check in checks),
        schema={"anyOf": [rule.schema for rule in rules]},
    )
    unlike = [rule for rule in rules if not rule.is_plain]
    if not unlike:
        return made
    if len(unlike) > 1 or len(rules) > 2 or type(None) not in args:
        raise TypeError(f"of {made.name} it cannot be told which one was kept")
    one = unlike[0]
    return dataclasses.replace(
        made,
        encode=lambda value: None if value is None else one.encode(value),
        decode=lambda value: None if value is None else one.decode(value),
    )


def _literal(args: tuple[Any, ...]) -> Rule:
    return Rule(
        name="one of " + ", ".join(map(repr, args)),
        check=lambda value: any(type(value) is type(one) and value == one for one in args),
        schema={"enum": list(args)},
    )


def _enum(kind: type[enum.Enum]) -> Rule:
    return _simple(
        kind, {"enum": [each.value for each in kind]}, encode=lambda each: each.value, decode=kind
    )


def _many(kind: Any, args: tuple[Any, ...]) -> Rule:
    item = rule_of(args[0]) if args else ANYTHING
    is_plain = kind is list and item.is_plain

    def check(value: Any) -> bool:
        return isinstance(value, kind) and (item is ANYTHING or all(map(item.check, value)))

    def encode(value: Iterable[Any]) -> list[Any]:
        items = [item.encode(each) for each in value]
        # Sets have no order; what is kept shall be the same for the same set.
        return items if kind is list else sorted(items, key=repr)

    return Rule(
        name=f"{kind.__name__}[{item.name}]",
        check=check,
        schema={"type": "array", "items": item.schema}
        | ({} if kind is list else {"uniqueItems": True}),
        encode=_same if is_plain else encode,
        decode=_same if is_plain else lambda items: kind(map(item.decode, items)),
    )


def _tuple(args: tuple[Any, ...]) -> Rule:
    if not args or (len(args) == 2 and args[1] is ...):
        item = rule_of(args[0]) if args else ANYTHING
        return Rule(
            name=f"tuple[{item.name}, ...]",
            check=lambda value: isinstance(value, tuple) and all(map(item.check, value)),
            schema={"type": "array", "items": item.schema},
            encode=lambda value: [item.encode(each) for each in value],
            decode=lambda items: tuple(map(item.decode, items)),
        )
    rules = [rule_of(each) for each in args]
    return Rule(
        name=f"tuple[{', '.join(rule.name for rule in rules)}]",
        check=lambda value: (
            isinstance(value, tuple)
            and len(value) == len(rules)
            and all(rule.check(each) for rule, each in zip(rules, value, strict=True))
        ),
        schema={"type": "array", "prefixItems": [r.schema for r in rules], "items": False},
        encode=lambda value: [r.encode(each) for r, each in zip(rules, value, strict=True)],
        decode=lambda items: tuple(r.decode(each) for r, each in zip(rules, items, strict=True)),
    )


def _mapping(args: tuple[Any, ...]) -> Rule:
    key, item = (rule_of(args[0]), rule_of(args[1])) if args else (_RULES[str], ANYTHING)
    if args and args[0] not in (str, int):
        raise TypeError(f"a mapping's keys are str or int, not {key.name}")
    number = bool(args) and args[0] is int
    is_plain = not number and item.is_plain
    return Rule(
        name=f"dict[{key.name}, {item.name}]",
        check=lambda value: (
            isinstance(value, dict)
            and all(key.check(k) and item.check(v) for k, v in value.items())
        ),
        schema={"type": "object", "additionalProperties": item.schema},
        encode=_same
        if is_plain
        else lambda value: {str(k): item.encode(v) for k, v in value.items()},
        decode=_same
        if is_plain
        else lambda value: {int(k) if number else k: item.decode(v) for k, v in value.items()},
    )


def _record(kind: type, fields: Iterable[tuple[str, Any]]) -> Rule:
    hints = typing.get_type_hints(kind, include_extras=True)
    rules = {name: rule_of(hints.get(name, given)) for name, given in fields}
    return Rule(
        name=kind.__name__,
        check=lambda value: (
            isinstance(value, kind)
            and all(rule.check(getattr(value, name)) for name, rule in rules.items())
        ),
        schema={"type": "object", "properties": {n: r.schema for n, r in rules.items()}},
        encode=lambda value: {n: r.encode(getattr(value, n)) for n, r in rules.items()},
        decode=lambda state: kind(**{n: rules[n].decode(v) for n, v in state.items()}),
    )
