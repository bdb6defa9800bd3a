"""Models that are dataclasses and attrs classes, and those kept in their own way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import attrs
import pytest

from moat_kv.state import (
    RefusedValue,
    State,
    StateModel,
    between,
    model_of,
    stored,
)


@dataclass
class Data(StateModel):
    """Told of itself."""

    target: Annotated[float, between(5, 30)] = 20.0
    rooms: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen(StateModel):
    n: int = 0


@dataclass
class Named(StateModel):
    id: str
    n: int = 0


@attrs.define
class Attrs(StateModel):
    target: float = attrs.field(default=20.0, validator=attrs.validators.le(30))
    rooms: list[str] = attrs.Factory(list)


@attrs.frozen
class FrozenAttrs(StateModel):
    n: int = 0


@pytest.mark.parametrize("cls", [Data, Attrs])
def test_a_dataclass_or_attrs_class_is_a_model(cls: type[Data] | type[Attrs]) -> None:
    with State() as state:
        state.load(cls(rooms=["hall"]))
    with State(cls) as state:
        model = state.checkout(cls)
        model.target = 21
        model.rooms.append("bath")
        assert state.checkout(cls).rooms == ["hall"]
        state.commit(model)
        found = state.checkout(cls)
    assert (found.target, found.rooms) == (21, ["hall", "bath"])
    assert set(found.serialize()) == {"id", "target", "rooms"}
    with pytest.raises(ValueError, match="31"):
        found.target = 31
    with State(cls) as state:
        found.rooms.append(cast("str", 7))
        with pytest.raises(RefusedValue):
            state.commit(found)


@pytest.mark.parametrize(
    ("cls", "replace"),
    [(Frozen, dataclasses.replace), (FrozenAttrs, attrs.evolve)],
    ids=["dataclass", "attrs"],
)
def test_a_frozen_class_is_a_model(cls: Any, replace: Any) -> None:
    with State() as state:
        state.load(cls())
    with State(cls) as state:
        state.commit(replace(state.checkout(cls), n=3))
    assert State().checkout(cls).n == 3
    kept = stored.restored(cls(), {"id": "x", "n": 4}, 1)
    assert (kept.id, kept.n) == ("x", 4)


def test_an_id_that_is_declared_makes_one_of_several() -> None:
    with State() as state:
        state.load(Named("a", 1))
        state.load(Named("b", 2))
        assert state.checkout(Named, "b").n == 2


@dataclass
class Foreign:
    n: int = 0

    def twice(self) -> int:
        return 2 * self.n


def test_a_foreign_dataclass_is_made_a_model() -> None:
    model = model_of(Foreign)
    with State() as state:
        state.load(model(4))
        assert state.checkout(model).twice() == 8
    with pytest.raises(TypeError, match="neither a dataclass"):
        model_of(int)


class Own(StateModel):
    """A declared model with a setter and a validator of its own."""

    n: int = 0

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, abs(value) if name == "n" else value)


def test_a_class_may_set_attributes_in_its_own_way() -> None:
    assert Own(-3).n == 3


@attrs.define
class Wired(StateModel):
    n: int = 0

    def serialize(self) -> dict[str, Any]:
        return {"id": self.id, "wired": self.n}

    def deserialize(self, **kwargs: Any) -> None:
        self.n = kwargs["wired"]


@dataclass
class WiredData(Wired):
    pass


@pytest.mark.parametrize("cls", [Wired, WiredData])
def test_a_declared_class_may_be_kept_in_its_own_way(cls: type[Wired]) -> None:
    assert stored.restored(cls(), {"wired": 7}, 1).n == 7
