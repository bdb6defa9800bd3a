"""Changes that the server computes from the present value: add, append, union, merge.

Called by the patch action with decoded values; pure, and the operand is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moat_kv import codec, errors

#: Stands for "there is no value yet".
ABSENT = object()


class _Unfit(Exception):
    """The present value or the operand is not of the type that the operation needs."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _add(old: Any, operand: Any) -> Any:
    if not _is_number(operand):
        raise _Unfit(f"what is added is a {_kind(operand)}, not a number")
    if old is ABSENT:
        return operand
    if not _is_number(old):
        raise _Unfit(f"the value is a {_kind(old)}, not a number")
    try:
        return old + operand
    except OverflowError as exc:
        raise _Unfit(f"an integer and a float that do not go together ({exc})") from exc


def _append(old: Any, operand: Any) -> Any:
    if old is ABSENT:
        return [operand]
    if not isinstance(old, list):
        raise _Unfit(f"the value is a {_kind(old)}, not a list")
    return [*old, operand]


def _union(old: Any, operand: Any) -> Any:
    if not isinstance(operand, list):
        raise _Unfit(f"what is united is a {_kind(operand)}, not a list")
    if old is ABSENT:
        old = []
    if not isinstance(old, list):
        raise _Unfit(f"the value is a {_kind(old)}, not a list")
    united = list(old)
    there = {_identity(item) for item in old}
    for item in operand:
        identity = _identity(item)
        if identity not in there:
            there.add(identity)
            united.append(item)
    return united


def _identity(item: Any) -> Any:
    """What two members have in common if they are the same: type and value, all the way down.

    True, 1 and 1.0 are different members. Hashable, because comparing each with each would take
    hours for what fits a frame; by packed form, because integers' hashes can be made to collide.
    """
    if isinstance(item, Mapping):
        pairs = [(_identity(key), _identity(value)) for key, value in item.items()]
        return dict, frozenset(pairs)
    if isinstance(item, list):
        return list, tuple([_identity(one) for one in item])
    return item if type(item) is str else codec.pack(item)


def _merge(old: Any, operand: Any) -> Any:
    if not isinstance(operand, Mapping):
        raise _Unfit(f"what is merged is a {_kind(operand)}, not a mapping")
    if old is ABSENT:
        old = {}
    if not isinstance(old, Mapping):
        raise _Unfit(f"the value is a {_kind(old)}, not a mapping")
    merged = dict(old)
    for key, value in operand.items():
        present = merged.get(key)
        if isinstance(value, Mapping) and isinstance(present, Mapping):
            merged[key] = _merge(present, value)
        else:
            merged[key] = value
    return merged


def _kind(value: Any) -> str:
    return "nothing" if value is ABSENT else type(value).__name__


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": _add,
    "append": _append,
    "union": _union,
    "merge": _merge,
}


def patched(path: str, op: str, old: Any, operand: Any) -> Any:
    """The new value. `old` is `ABSENT` if there is none.

    add: number plus number (absent counts as 0). append: one item at a list's end. union: the
    items of a list that are not in the value yet. merge: mappings, deeply.

    Raises CannotPatch.
    """
    operation = OPERATIONS.get(op)
    if operation is None:
        raise errors.CannotPatch(path, op, f"the operations are {', '.join(OPERATIONS)}")
    try:
        return operation(old, operand)
    except _Unfit as exc:
        raise errors.CannotPatch(path, op, str(exc)) from None
