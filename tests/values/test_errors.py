"""Errors keep their class and facts over the wire and through pickling."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest

from moat_kv import codec, errors
from moat_kv.errors import MoatKvError, from_wire, to_wire
from moat_kv.path import P

LEAVES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, MoatKvError) and cls.__module__ == errors.__name__
]


def _over_the_wire(error: MoatKvError) -> MoatKvError:
    name, facts = codec.unpack(codec.pack(to_wire(error)))
    return from_wire(name, facts)


def _facts(cls: type[MoatKvError]) -> dict[str, Any]:
    facts: dict[str, Any] = {field: f"the {field}" for field in cls.fields}
    return facts | {"extra": [1, 2.5, None, True, b"x"]}


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_every_leaf_survives_the_wire_with_its_facts(cls: type[MoatKvError]) -> None:
    facts = _facts(cls)
    error = cls(**facts)
    back = _over_the_wire(error)
    assert type(back) is cls
    assert back.facts == facts
    assert str(back) == str(error)
    for name, value in facts.items():
        assert getattr(back, name) == getattr(error, name) == value


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_facts_may_be_given_by_position(cls: type[MoatKvError]) -> None:
    values = [f"the {field}" for field in cls.fields]
    error = cls(*values)
    assert error.facts == dict(zip(cls.fields, values, strict=True))
    for field in cls.fields:
        assert getattr(error, field) == f"the {field}"
        if field != "where":
            assert f"the {field}" in str(error) or "{" + field not in cls.message


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_a_missing_fact_is_none_and_shown_as_unknown(cls: type[MoatKvError]) -> None:
    back = _over_the_wire(cls())
    assert type(back) is cls
    assert back.facts == {}
    for field in cls.fields:
        assert getattr(back, field) is None
    assert "{" not in str(back)


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_every_leaf_can_be_pickled(cls: type[MoatKvError]) -> None:
    error = cls(**_facts(cls))
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.facts, str(back)) == (cls, error.facts, str(error))


def test_every_leaf_has_a_name_of_its_own() -> None:
    assert len(LEAVES) > 20
    assert all(to_wire(cls())[0] == cls.__name__ for cls in LEAVES)


def test_an_unknown_name_keeps_its_facts_and_travels_on() -> None:
    facts = {"speed": 3, "text": "too fast", "self": "me", "name": "n"}
    back = from_wire("TooFast", facts)
    assert type(back) is MoatKvError
    assert back.facts == facts
    assert back.speed == 3
    assert "TooFast" in str(back)
    assert "too fast" in str(back)
    assert to_wire(back) == ("TooFast", facts)
    again = pickle.loads(pickle.dumps(_over_the_wire(back)))
    assert to_wire(again) == ("TooFast", facts)


def test_facts_that_are_not_plain_travel_as_text() -> None:
    name, facts = to_wire(errors.Conflict(P("a:1"), expect=3, have=4, seen=[P("b"), (1, P("c"))]))
    assert name == "Conflict"
    assert facts == {"path": "a:1", "expect": 3, "have": 4, "seen": ["b", [1, "c"]]}


def test_a_fact_that_is_not_fit_for_utf8_travels() -> None:
    back = _over_the_wire(errors.BadConfig("a\ud800", "no character"))
    assert back.name == "a\\ud800"


def test_an_attribute_that_is_no_fact_is_missing() -> None:
    with pytest.raises(AttributeError):
        _ = errors.Conflict("a").nonsense


def test_leaves_are_the_builtin_errors_that_callers_expect() -> None:
    assert issubclass(errors.NotFound, KeyError)
    assert issubclass(errors.BadPath, ValueError)
    assert issubclass(errors.BadValue, ValueError)
    assert issubclass(errors.Disconnected, ConnectionError)
    assert issubclass(errors.RequestTimeout, TimeoutError)
    assert issubclass(errors.MissingModule, ImportError)


def test_a_hint_and_a_place_are_part_of_the_message() -> None:
    assert str(errors.BadValue("too odd", "a.b")) == "bad value: too odd (at a.b)"
    assert str(errors.Detached("no quorum", hint="wait")) == "detached: no quorum; wait"
