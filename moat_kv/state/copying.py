"""Copies of models that cost no more than what can change in them.

Used for every checkout and commit. Values that cannot change are shared between a model and its
copies; lists, dictionaries and sets of such values are copied in one step; only what is left goes
to `copy.deepcopy`. What one list is in a model stays one list in its copy.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import enum
import fractions
import pathlib
import types
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from moat_kv.path import Path

_T = TypeVar("_T")

#: Of these exact types nothing can change, nor inside them.
_UNCHANGEABLE: set[type] = {
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    slice,
    type,
    type(...),
    types.FunctionType,
    types.BuiltinFunctionType,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    decimal.Decimal,
    fractions.Fraction,
    uuid.UUID,
    pathlib.PurePosixPath,
    pathlib.PosixPath,
    Path,
}
#: Classes of which it was found out that their instances are shared.
_shared_kinds: dict[type, bool] = {}


def cannot_change(value: object) -> bool:
    """Whether a value can be shared; judged by its type alone, so not for tuples."""
    kind = type(value)
    return kind in _UNCHANGEABLE or (_shared_kinds[kind] if kind in _shared_kinds else _judge(kind))


def _judge(kind: type) -> bool:
    found = issubclass(kind, enum.Enum | type)
    _shared_kinds[kind] = found
    return found


def copy_of(value: _T, memo: dict[int, Any]) -> _T:
    """A copy of a value that shares what cannot change; `memo` as for `copy.deepcopy`."""
    kind = type(value)
    if kind in _UNCHANGEABLE:
        return value
    copier = _copiers.get(kind)
    if copier is None:
        return value if cannot_change(value) else copy.deepcopy(value, memo)
    known: _T | None = memo.get(id(value))
    if known is not None:
        return known
    made: _T = copier(value, memo)
    return made


def _copy_list(value: list[Any], memo: dict[int, Any]) -> list[Any]:
    made = memo[id(value)] = value.copy()
    if not _UNCHANGEABLE.issuperset(map(type, value)):
        for index, item in enumerate(value):
            if type(item) not in _UNCHANGEABLE:
                made[index] = copy_of(item, memo)
    return made


def _copy_dict(value: dict[Any, Any], memo: dict[int, Any]) -> dict[Any, Any]:
    # A key that hashes by what can change in it would be a fault of its own; keys are shared.
    made = memo[id(value)] = value.copy()
    if not _UNCHANGEABLE.issuperset(map(type, value.values())):
        for key, item in value.items():
            if type(item) not in _UNCHANGEABLE:
                made[key] = copy_of(item, memo)
    return made


def _copy_set(value: set[Any], memo: dict[int, Any]) -> set[Any]:
    made = memo[id(value)] = value.copy()
    return made


def _copy_bytearray(value: bytearray, memo: dict[int, Any]) -> bytearray:
    made = memo[id(value)] = value[:]
    return made


def _copy_tuple(value: tuple[Any, ...], memo: dict[int, Any]) -> tuple[Any, ...]:
    if _UNCHANGEABLE.issuperset(map(type, value)):
        return value
    items = tuple([copy_of(item, memo) for item in value])
    # (the tuple may hold a list that holds the tuple)
    made = memo.setdefault(id(value), items)
    return made if any(a is not b for a, b in zip(made, value, strict=True)) else value


def _share(value: Any, memo: dict[int, Any]) -> Any:
    return value


_copiers: dict[type, Callable[[Any, dict[int, Any]], Any]] = {
    list: _copy_list,
    dict: _copy_dict,
    set: _copy_set,
    frozenset: _share,
    tuple: _copy_tuple,
    bytearray: _copy_bytearray,
}

#: How the instances of a class are copied: by the class itself, or with these slots.
_ways: dict[type, tuple[bool, tuple[str, ...]]] = {}


def slots_of(cls: type) -> tuple[str, ...]:
    """The names of what a class's instances keep outside of their dictionary."""
    names: list[str] = []
    for base in cls.__mro__:
        own = base.__dict__.get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            if name not in ("__dict__", "__weakref__"):
                hidden = name.startswith("__") and not name.endswith("__")
                names.append(f"_{base.__name__.lstrip('_')}{name}" if hidden else name)
    return tuple(names)


def _way_of(cls: type) -> tuple[bool, tuple[str, ...]]:
    found = _ways[cls] = (hasattr(cls, "__deepcopy__"), slots_of(cls))
    return found


def copy_of_object(model: _T) -> _T:
    """A copy of a model, without running its `__init__`. Raises what a part of it raises.

    A class that defines `__deepcopy__` is copied by that.
    """
    cls = type(model)
    by_itself, slots = _ways.get(cls) or _way_of(cls)
    if by_itself:
        return copy.deepcopy(model)
    made = object.__new__(cls)
    _fill(made, model, made.__dict__, slots)
    return made


def fill(target: Any, source: Any) -> None:
    """Give `target` copies of all that `source` has, and nothing else."""
    target.__dict__.clear()
    _fill(target, source, target.__dict__, slots_of(type(source)))


def _fill(target: Any, source: Any, values: dict[str, Any], slots: tuple[str, ...]) -> None:
    present = source.__dict__
    values.update(present)
    memo: dict[int, Any] | None = None
    for name, value in present.items():
        kind = type(value)
        if kind in _UNCHANGEABLE:
            continue
        if memo is None:
            memo = {id(source): target}
        copier = _copiers.get(kind)
        if copier is None or id(value) in memo:
            values[name] = copy_of(value, memo)
        else:
            values[name] = copier(value, memo)
    if not slots:
        return
    if memo is None:
        memo = {id(source): target}
    for name in slots:
        try:
            value = getattr(source, name)
        except AttributeError:
            continue
        object.__setattr__(target, name, copy_of(value, memo))
