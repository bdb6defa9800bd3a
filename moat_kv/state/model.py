"""The class that users' models derive from.

What users see of a model; how it is copied, locked, committed and kept is in the other modules,
which look at the class variables and the two marks (`_moat_rev`, `_moat_named`) here. A model
itself knows nothing of files or servers.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Self, TypeVar
from typing import dataclass_transform as _dataclass_transform

from moat_kv.state import attributes, shapes

if TYPE_CHECKING:
    from collections.abc import Awaitable

_M = TypeVar("_M", bound="StateModel")


class Instance(NamedTuple, Generic[_M]):
    """One of several models of a class; what `StateModel.instance` gives."""

    cls: type[_M]
    id: str | int


@_dataclass_transform(field_specifiers=(attributes.attribute, dataclasses.field))
class StateModel:
    """The base of all state models, in one of two forms.

    With getters and setters: `__init__` calls `super().__init__()`, or `super().__init__(id)` for
    one of several; `serialize` and `deserialize` are written by hand. Declared: annotated
    attributes, or a dataclass or attrs class; `__init__`, checks, `serialize` and `deserialize`
    are derived then. An attribute `id` that is declared makes it one of several.
    """

    id: str | int
    """Given, or made up. It is kept with the state."""

    model_name: ClassVar[str]
    """Its name in the tree; by default the class's qualified name. Not inherited."""
    schema_version: ClassVar[int] = 1
    """Of what `serialize` gives; see `migrate`."""
    cached: ClassVar[bool] = False
    """Whether a commit that does not say otherwise is kept as a file."""
    cache_synced: ClassVar[bool] = False
    """Whether that file is on the disk before the commit returns: safe against loss of power."""
    offline: ClassVar[bool] = False
    """Shared: commit plainly, without lock and revision, also while the server is cut off."""

    _moat_rev: int
    _moat_named: bool

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        shape = shapes.shape_of(cls)
        self = super().__new__(cls)
        values = self.__dict__
        # The revision that this copy was checked out at; 0: it is nobody's copy.
        values["_moat_rev"] = 0
        values["_moat_named"] = shape.has_id
        if not shape.has_id:
            values["id"] = str(uuid.uuid4())
        return self

    def __init__(self, _id: Any = attributes.MISSING, *args: Any, **kwargs: Any) -> None:
        shape = shapes.shape_of(type(self))
        if shape.kind is shapes.Kind.OWN:
            given = () if _id is attributes.MISSING else (_id, *args)
            shapes.fill(self, shape, given, kwargs)
        elif args or kwargs:
            raise TypeError(f"{type(self).__qualname__} takes an id at most")
        elif _id is not None and _id is not attributes.MISSING:
            self.id = _id
            self._moat_named = True

    @classmethod
    def instance(cls, id: str | int) -> Instance[Self]:
        """The one of this id, where a class is expected: `State(Room.instance("hall"))`."""
        return Instance(cls, id)

    # To be overridden ---------------------------------------------------------------------------

    def serialize(self) -> dict[str, Any]:
        """What is kept: a mapping that JSON carries, from attribute to value, with `id`."""
        return shapes.serialized(self, shapes.shape_of(type(self)))

    def deserialize(self, **kwargs: Any) -> None:
        """Take what `serialize` gave. Raises what the setters or validators raise."""
        shapes.deserialize(self, shapes.shape_of(type(self)), kwargs)

    def preconditions(self) -> None:
        """Raise an exception if this model must not become the state; called in each commit.

        A declared model checks its attributes' types and validators here: call `super()`.
        """
        shape = shapes.shape_of(type(self))
        if shape.fields:
            shapes.check(self, shape)

    def apply(self, old: Self) -> Awaitable[None] | None:
        """Bring this model, a copy of what is committed, into the world; the firmware's step.

        Called in each commit after the preconditions, with the state until now. It may raise to
        refuse, and nothing is changed then; or set attributes of `self` to what was accepted. It is
        called again with what is there if the commit fails after it. May be `async def`.
        """
        return None

    @classmethod
    def migrate(cls, state: dict[str, Any], version: int) -> dict[str, Any]:
        """Turn what was kept with an earlier `schema_version` into what `deserialize` takes."""
        raise TypeError(
            f"{cls.__qualname__} is kept with schema version {version}, this is "
            f"{cls.schema_version}, and it defines no migrate"
        )

    # For people ---------------------------------------------------------------------------------

    def __str__(self) -> str:
        return "\n" + json.dumps(self.serialize(), indent=3, default=str, ensure_ascii=False)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.serialize().items())
        return f"{type(self).__qualname__}({values})"

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, StateModel) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)


def name_of(cls: type[StateModel]) -> str:
    """A class's name in the tree."""
    name: str = cls.__dict__.get("model_name") or cls.__qualname__
    return name


def has_apply(cls: type[StateModel]) -> bool:
    """Whether a class brings an `apply` of its own."""
    return cls.apply is not StateModel.apply


def model_of(cls: type) -> type[Any]:
    """A model's class made of a dataclass or attrs class that is none yet. Raises TypeError."""
    if not dataclasses.is_dataclass(cls) and not hasattr(cls, "__attrs_attrs__"):
        raise TypeError(f"{cls.__qualname__} is neither a dataclass nor an attrs class")
    made = type(cls.__name__, (cls, StateModel), {"__module__": cls.__module__})
    made.__qualname__ = cls.__qualname__
    return made
