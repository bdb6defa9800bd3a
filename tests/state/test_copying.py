"""Copies: what can change is never shared, and nothing else is copied."""

from __future__ import annotations

import collections
import copy
import datetime
import enum
import threading
from typing import Any

import pytest

from moat_kv.path import P
from moat_kv.state import copying


class Plain:
    pass


class Slotted:
    __slots__ = ("__dict__", "__hidden", "unset", "x")

    def __init__(self) -> None:
        self.x = [1]
        self.__hidden = [2]

    def hidden(self) -> list[int]:
        return self.__hidden


class OneSlot:
    __slots__ = "only"


class Colour(enum.Enum):
    RED = 1


def model(**values: Any) -> Plain:
    made = Plain()
    made.__dict__.update(values)
    return made


def copied(value: Any) -> Any:
    return copying.copy_of_object(model(v=value)).v  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "value",
    [
        "text",
        datetime.datetime(2026, 1, 1),
        P("a.b"),
        Colour.RED,
        int,
        (1, "a", (2,)),
        frozenset({1}),
        len,
    ],
    ids=str,
)
def test_what_cannot_change_is_shared(value: object) -> None:
    assert copied(value) is value


@pytest.mark.parametrize(
    "value",
    [
        [1, [2, {"a": [3]}], (4, [5])],
        {"a": {"b": [1]}, (1, 2): {1}},
        {1, 2},
        bytearray(b"a"),
        collections.deque([1, [2]]),
        ([1], [2]),
    ],
    ids=str,
)
def test_what_can_change_is_copied_through_and_through(value: Any) -> None:
    found = copied(value)
    assert found == value == copy.deepcopy(value)
    assert found is not value
    if isinstance(value, list):
        found[1][1]["a"].append(0)
        found[2][1].append(0)
        assert value == [1, [2, {"a": [3]}], (4, [5])]


def test_what_is_one_in_a_model_stays_one_in_its_copy() -> None:
    shared: list[Any] = [1]
    shared.append(shared)
    original = model(a=shared, b=shared, c=(shared,))
    original.__dict__["own"] = [original]
    made: Any = copying.copy_of_object(original)
    assert made.a is made.b is made.c[0] is made.a[1]
    assert made.a is not shared
    assert made.own[0] is made


def test_slots_are_copied_too() -> None:
    original = Slotted()
    original.__dict__["y"] = [3]
    made = copying.copy_of_object(original)
    made.x.append(9)
    made.hidden().append(9)
    assert (original.x, original.hidden()) == ([1], [2])
    assert made.__dict__["y"] == [3]
    assert not hasattr(made, "unset")
    assert copying.slots_of(OneSlot) == ("only",)


def test_a_class_may_copy_in_its_own_way() -> None:
    class Own(Plain):
        def __deepcopy__(self, memo: dict[int, Any]) -> Own:
            made = Own()
            made.__dict__["mine"] = True
            return made

    assert copying.copy_of_object(Own()).__dict__ == {"mine": True}


def test_what_cannot_be_copied_is_an_error() -> None:
    with pytest.raises(TypeError):
        copied(threading.Lock())
