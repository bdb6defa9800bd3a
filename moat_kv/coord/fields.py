"""The fields of an aggregate: how a value is taken, and how two of them are merged.

Declared in a `Model`'s class. Merging is in any order and any grouping, so that parts of a whole
can be merged wherever they meet. A field's state is what msgpack carries; what it shows may be
another thing. Pure.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from moat_kv import codec

if TYPE_CHECKING:
    from moat_kv.coord.modelling import ModelLogic

#: How many entries a windowed list has, if nobody says otherwise.
WINDOW = 10


def _is_nan(given: Any) -> bool:
    return isinstance(given, float) and math.isnan(given)


class Field:
    """One of an aggregate's values; read as an attribute of the model."""

    name = "?"

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: ModelLogic | None, owner: type) -> Any:
        return self if model is None else self.shown(model.doc[self.name])

    def start(self) -> Any:
        """The state before there was any value; merging it changes nothing."""
        return None

    def taken(self, given: Any) -> Any:
        """The state of one value, as a user gives it. Raises TypeError."""
        raise NotImplementedError

    def merged(self, one: Any, other: Any) -> Any:
        """The state of both together. Neither is changed."""
        raise NotImplementedError

    def shown(self, state: Any) -> Any:
        """The value, for users."""
        return state

    def refused(self, given: Any, wanted: str) -> TypeError:
        return TypeError(f"{self.name} takes {wanted}, not {given!r}")


class Sum(Field):
    """Values are added; 0 at first. `data_type`: `int`, or `float`, which takes integers, too."""

    sign = 1

    def __init__(self, data_type: type[int] | type[float] = int) -> None:
        self.data_type = data_type

    def start(self) -> Any:
        return self.data_type(0)

    def taken(self, given: Any) -> Any:
        fits = isinstance(given, int if self.data_type is int else int | float)
        if not fits or isinstance(given, bool) or _is_nan(given):
            raise self.refused(given, "an integer" if self.data_type is int else "a number")
        try:
            return self.sign * self.data_type(given)
        except OverflowError as exc:
            raise self.refused(given, "a number of that size") from exc

    def merged(self, one: Any, other: Any) -> Any:
        return one + other


class Diff(Sum):
    """Values are subtracted; 0 at first."""

    sign = -1


class ListAppend(Field):
    """Lists are joined, in the order in which they come to be merged."""

    def start(self) -> Any:
        return []

    def taken(self, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            raise self.refused(given, "a list")
        return list(given)

    def merged(self, one: Any, other: Any) -> Any:
        return [*one, *other]


class SetAppend(Field):
    """Sets are united; members are what a set can have. 1, 1.0 and True are different members."""

    def start(self) -> Any:
        return []

    def taken(self, given: Any) -> Any:
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise self.refused(given, "a set or a list")
        try:
            frozenset(members := list(given))
        except TypeError as exc:
            raise self.refused(given, "members that can be in a set") from exc
        return self.merged([], members)

    def merged(self, one: Any, other: Any) -> Any:
        return list({codec.pack(member): member for member in (*one, *other)}.values())

    def shown(self, state: Any) -> Any:
        return set(map(_member, state))


def _member(kept: Any) -> Any:
    """A member as it was given: a list cannot have been in a set, a tuple can."""
    return tuple(map(_member, kept)) if isinstance(kept, list | tuple) else kept


class WindowedList(Field):
    """Of pairs `(rank, value)` those with the highest ranks are kept, in the order of ranks.

    A rank is a number, such as a time stamp. `window_length`: how many, at least 1.
    """

    def __init__(self, window_length: int = WINDOW) -> None:
        if window_length < 1:
            raise ValueError(f"a window has at least one entry, not {window_length}")
        self.window_length = window_length

    def start(self) -> Any:
        return []

    def taken(self, given: Any) -> Any:
        if not isinstance(given, list | tuple) or not all(map(_is_pair, given)):
            raise self.refused(given, "a list of pairs (rank, value)")
        return self.merged([], [list(pair) for pair in given])

    def merged(self, one: Any, other: Any) -> Any:
        # Of those with the same rank always the same ones are kept.
        key = _rank
        return sorted(heapq.nlargest(self.window_length, (*one, *other), key=key), key=key)

    def shown(self, state: Any) -> Any:
        return [tuple(pair) for pair in state]


def _is_pair(given: Any) -> bool:
    if not isinstance(given, list | tuple) or len(given) != 2:
        return False
    rank = given[0]
    return isinstance(rank, int | float) and not isinstance(rank, bool) and not _is_nan(rank)


def _rank(pair: Any) -> Any:
    return pair[0], codec.pack(pair[1])


class Max(Field):
    """The highest value; None before there was any. Any text is higher than all numbers."""

    def taken(self, given: Any) -> Any:
        if not isinstance(given, int | float | str) or isinstance(given, bool) or _is_nan(given):
            raise self.refused(given, "a number or a text")
        return given

    def merged(self, one: Any, other: Any) -> Any:
        if one is None or other is None:
            return other if one is None else one
        return self.chosen(one, other)

    def chosen(self, one: Any, other: Any) -> Any:
        return max(one, other, key=_height)


def _height(value: Any) -> Any:
    # Nobody can tell when merging who gave what, so nothing that was taken may fail to compare.
    return isinstance(value, str), value


class Min(Max):
    """The lowest value; None before there was any."""

    def chosen(self, one: Any, other: Any) -> Any:
        return min(one, other, key=_height)


class Last(Field):
    """The value that was given last, by the clocks of those who gave it; None before."""

    def taken(self, given: Any) -> Any:
        return [time.time(), given]

    def merged(self, one: Any, other: Any) -> Any:
        if one is None or other is None:
            return other if one is None else one
        return max(one, other, key=_rank)

    def shown(self, state: Any) -> Any:
        return None if state is None else state[1]
