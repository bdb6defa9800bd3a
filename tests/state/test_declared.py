"""The declared form: annotated attributes, dataclasses, attrs classes."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest

from moat_kv.path import P, Path
from moat_kv.state import (
    RefusedValue,
    State,
    StateModel,
    attribute,
    between,
    matches,
    shapes,
    stored,
    value_rules,
)


class Mode(enum.Enum):
    ECO = "eco"
    COMFORT = "comfort"


@dataclass
class Point:
    x: int
    at: datetime.datetime | None = None


class Everything(StateModel):
    """All that can be declared."""

    LIMIT: ClassVar[int] = 3
    text: str
    number: float = 1.5
    count: int | None = None
    flag: bool = False
    raw: bytes = b"\x00"
    mode: Mode = Mode.ECO
    word: Literal["a", 1] = "a"
    when: datetime.datetime = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    day: datetime.date = datetime.date(2026, 1, 2)
    span: datetime.timedelta = datetime.timedelta(seconds=1.5)
    path: Path = P("a.b:1")
    items: list[int] = attribute(factory=list)
    times: list[datetime.date] = attribute(factory=list)
    tags: set[str] = attribute(factory=lambda: {"b", "a"})
    fixed: frozenset[int] = frozenset()
    pair: tuple[int, str] = (1, "x")
    many: tuple[datetime.date, ...] = ()
    bag: tuple = ()  # type: ignore[type-arg]
    names: dict[str, int] = attribute(factory=dict)
    numbers: dict[int, Mode] = attribute(factory=dict)
    loose: dict = attribute(factory=dict)  # type: ignore[type-arg]
    point: Point = Point(1)
    anything: Any = None
    _hidden: int = 7


def test_what_is_kept_of_every_kind_comes_back() -> None:
    model = Everything(
        "t",
        items=[1],
        times=[datetime.date(2026, 5, 6)],
        many=(datetime.date(2026, 5, 6),),
        bag=(1, "a"),
        numbers={1: Mode.COMFORT},
        point=Point(3, datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)),
        anything=[1, {"a": None}],
        word=1,
    )
    kept = model.serialize()
    other = Everything("other")
    other.deserialize(**kept)
    assert other.serialize() == kept
    assert "_hidden" not in kept
    for name in shapes.shape_of(Everything).fields:
        assert getattr(other, name) == getattr(model, name), name
        assert type(getattr(other, name)) is type(getattr(model, name)), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 1),
        ("number", "1"),
        ("number", True),
        ("count", 1.5),
        ("count", True),
        ("flag", 1),
        ("mode", "eco"),
        ("word", True),
        ("items", [1, "2"]),
        ("items", (1,)),
        ("tags", ["a"]),
        ("pair", (1,)),
        ("pair", ("a", "b")),
        ("names", {1: 1}),
        ("numbers", {"1": Mode.ECO}),
        ("point", Point("x")),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_an_attribute_takes_its_type_only(name: str, value: object) -> None:
    model = Everything("t")
    with pytest.raises(RefusedValue, match=f"Everything.{name}: "):
        setattr(model, name, value)


def test_an_attribute_that_is_not_declared_cannot_be_set() -> None:
    model = Everything("t")
    with pytest.raises(AttributeError, match="declares no attribute 'txet'"):
        model.txet = "x"  # type: ignore[attr-defined]
    model._private = 1  # type: ignore[attr-defined]
    model.id = "other"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((), "needs text"),
        (("a",) * 40, "attributes, 40 were given"),
        (("a", {"text": "b"}), "two values for text"),
        (("a", {"txet": "b"}), "no attribute 'txet'"),
    ],
    ids=["missing", "too many", "twice", "unknown"],
)
def test_a_model_is_made_of_its_attributes(given: tuple[Any, ...], reason: str) -> None:
    named = given[-1] if given and isinstance(given[-1], dict) else {}
    with pytest.raises(TypeError, match=reason):
        Everything(*given[:1] if named else given, **named)


def test_each_model_has_a_default_of_its_own() -> None:
    class Room(StateModel):
        lamps: list[int] = []  # noqa: RUF012

    one, other = Room(), Room()
    one.lamps.append(1)
    assert other.lamps == []


class Thermostat(StateModel):
    target: float = attribute(default=20.0, check=between(5, 30))
    name: Annotated[str, matches("[a-z]+")] = "hall"
    low: float | None = attribute(default=None, check=(between(low=0), lambda value: value != 1))


def test_validators_refuse_values() -> None:
    model = Thermostat()
    with pytest.raises(RefusedValue, match=r"31 is refused by between\(low=5, high=30\)"):
        model.target = 31
    with pytest.raises(RefusedValue, match=r"refused by matches"):
        model.name = "Hall"
    with pytest.raises(RefusedValue, match="lambda"):
        model.low = 1
    with pytest.raises(RefusedValue):
        Thermostat(4.0)
    model.low = 2
    model.low = None


def test_validators_are_called_at_the_commit_too() -> None:
    class Rooms(StateModel):
        names: list[str] = attribute(factory=list, check=lambda names: len(names) < 2)

    with State() as state:
        state.load(Rooms())
    with State(Rooms) as state:
        rooms = state.checkout(Rooms)
        rooms.names += ["a"]
        state.commit(rooms)
        rooms.names.append("b")
        with pytest.raises(RefusedValue):
            state.commit(rooms)


def test_attributes_are_inherited() -> None:
    class More(Thermostat):
        extra: int = 1

    more = More(21.0, extra=2)
    assert list(more.serialize()) == ["id", "target", "name", "low", "extra"]
    with pytest.raises(RefusedValue):
        more.target = 99


def test_an_attribute_has_a_default_or_a_factory() -> None:
    with pytest.raises(TypeError, match="not both"):
        attribute(default=1, factory=int)


@pytest.mark.parametrize(
    "annotation",
    [complex, int | bytes | None, dict[bytes, int], datetime.date | bytes],
    ids=str,
)
def test_a_type_that_cannot_be_kept_is_refused(annotation: Any) -> None:
    with pytest.raises(TypeError):
        value_rules.rule_of(annotation)


def test_a_class_with_such_an_attribute_says_which() -> None:
    class Bad(StateModel):
        lock: complex

    with pytest.raises(TypeError, match=r"Bad\.lock: values of type"):
        Bad(1j)

    class Local(StateModel):
        other: "Missing"  # type: ignore[name-defined]  # noqa: F821, UP037

    with pytest.raises(TypeError, match="cannot be found"):
        Local(1)


def test_wrong_or_unknown_kept_values_change_nothing() -> None:
    model = Thermostat()
    for kept in ({"target": 6, "name": 3}, {"target": 6, "nane": "x"}):
        with pytest.raises(RefusedValue):
            model.deserialize(**kept)
        assert model.target == 20.0
    with pytest.raises(RefusedValue, match="is not bytes"):
        Everything("t").deserialize(raw="no base64!")


# Schemas ------------------------------------------------------------------------------------------


def test_a_schema_says_what_is_declared() -> None:
    schema = stored.schema_of(Everything)
    assert schema["description"] == "All that can be declared."
    assert schema["version"] == 1
    assert schema["properties"]["count"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert schema["properties"]["mode"] == {"enum": ["eco", "comfort"]}
    assert schema["properties"]["tags"]["uniqueItems"]


def test_a_schema_says_what_validators_allow() -> None:
    class Limited(StateModel):
        power: float = attribute(default=1.0, check=(between(0, 10), bool))
        least: int = attribute(default=1, check=between(1))
        name: str = attribute(default="a", check=matches("a|b"))

    properties = stored.schema_of(Limited)["properties"]
    assert properties["power"] == {"type": "number", "minimum": 0, "maximum": 10}
    assert properties["least"] == {"type": "integer", "minimum": 1}
    assert properties["name"] == {"type": "string", "pattern": "^(?:a|b)$"}


def test_a_schema_of_getters_has_what_they_return() -> None:
    class Plain(StateModel):
        def __init__(self) -> None:
            super().__init__()

        @property
        def n(self) -> int:
            return 1

        @property
        def odd(self) -> complex:
            raise NotImplementedError

        def serialize(self) -> dict[str, Any]:
            return {"id": self.id}

        def deserialize(self, **kwargs: Any) -> None:
            pass

    assert stored.schema_of(Plain)["properties"] == {"n": {"type": "integer"}, "odd": {}}
