"""What is declared in a model's class, found out at the first use of the class.

Four kinds: getters and setters (`PLAIN`, nothing is declared, the class brings its own `serialize`
and `deserialize`), annotated attributes (`OWN`), dataclasses, attrs classes. Of the last three a
`Shape` derives checks, `__init__` (for `OWN`), and what is kept. `model` asks; nothing here holds
any model.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from moat_kv.state import attributes, copying, errors, value_rules
from moat_kv.state.attributes import MISSING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from moat_kv.state.model import StateModel


class Kind(enum.Enum):
    PLAIN = "getters and setters"
    OWN = "annotated attributes"
    DATACLASS = "dataclass"
    ATTRS = "attrs class"


@dataclass(frozen=True, kw_only=True)
class Field:
    """One declared attribute."""

    name: str
    rule: value_rules.Rule
    spec: attributes.Attribute

    def check(self, label: str, value: Any) -> None:
        """Raises RefusedValue, or what a validator raises."""
        if not self.rule.check(value):
            reason = f"{value!r} is not {self.rule.name}"
            raise errors.RefusedValue(label, self.name, reason)
        for check in self.spec.checks:
            if check(value) is False:
                reason = f"{value!r} is refused by {attributes.describe(check)}"
                raise errors.RefusedValue(label, self.name, reason)

    def decode(self, label: str, kept: Any) -> Any:
        try:
            value = self.rule.decode(kept)
        except (TypeError, ValueError, KeyError, AttributeError) as exc:
            reason = f"{kept!r} is not {self.rule.name}: {exc}"
            raise errors.RefusedValue(label, self.name, reason) from exc
        self.check(label, value)
        return value

    def new_default(self) -> Any:
        if self.spec.factory is not None:
            return self.spec.factory()
        return copying.copy_of(self.spec.default, {})


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a class declares."""

    kind: Kind
    fields: Mapping[str, Field]
    is_frozen: bool = False

    @property
    def has_id(self) -> bool:
        return "id" in self.fields


#: A class is judged once.
_shapes: dict[type, Shape] = {}


def shape_of(cls: type[StateModel]) -> Shape:
    """A class's shape. Raises TypeError for what cannot be a model."""
    found = _shapes.get(cls)
    if found is None:
        found = _shapes[cls] = _judge(cls)
        if cls.__setattr__ is not object.__setattr__:
            return found  # its own, or ours by a base
        if found.kind is Kind.OWN:
            cls.__setattr__ = _set_checked  # type: ignore[assignment,method-assign]
        elif found.kind is Kind.DATACLASS and not found.is_frozen:
            cls.__setattr__ = _set_checked_or_other  # type: ignore[assignment,method-assign]
    return found


def _judge(cls: type[StateModel]) -> Shape:
    from moat_kv.state.model import StateModel

    brings_own = cls.serialize is not StateModel.serialize
    if brings_own != (cls.deserialize is not StateModel.deserialize):
        raise TypeError(f"{cls.__qualname__} defines one of serialize and deserialize; both belong")
    if dataclasses.is_dataclass(cls):
        params = cls.__dataclass_params__
        return Shape(
            kind=Kind.PLAIN if brings_own else Kind.DATACLASS,
            fields={} if brings_own else _fields(cls, [f.name for f in dataclasses.fields(cls)]),
            is_frozen=params.frozen,
        )
    if hasattr(cls, "__attrs_attrs__"):
        names = [each.name for each in cls.__attrs_attrs__]
        return Shape(
            kind=Kind.PLAIN if brings_own else Kind.ATTRS,
            fields={} if brings_own else _fields(cls, names),
            is_frozen=_is_frozen_attrs(cls),
        )
    if brings_own:
        return Shape(kind=Kind.PLAIN, fields={})
    fields = _fields(cls, list(_annotated(cls)))
    if not fields:
        raise TypeError(
            f"{cls.__qualname__} has nothing to keep: annotate its attributes, "
            "or define serialize and deserialize"
        )
    return Shape(kind=Kind.OWN, fields=fields)


def _is_frozen_attrs(cls: Any) -> bool:
    hook = getattr(cls.__setattr__, "__name__", "")
    return "frozen" in hook


def _annotated(cls: type) -> Iterator[str]:
    """The public names that are annotated in a class and its bases, in order."""
    from moat_kv.state.model import StateModel

    seen: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        if base is not StateModel and base is not object and issubclass(base, StateModel):
            seen.update(dict.fromkeys(inspect.get_annotations(base)))
    return (name for name in seen if not name.startswith("_"))


def _fields(cls: type, names: list[str]) -> dict[str, Field]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as exc:
        raise TypeError(f"a type in {cls.__qualname__} cannot be found: {exc}") from exc
    fields = {}
    for name in names:
        hint = hints.get(name, Any)
        if typing.get_origin(hint) is ClassVar or hint is ClassVar:
            continue
        try:
            rule = value_rules.rule_of(hint)
        except TypeError as exc:
            raise TypeError(f"{cls.__qualname__}.{name}: {exc}") from None
        fields[name] = Field(name=name, rule=rule, spec=_spec(cls, name, hint))
    return fields


def _spec(cls: type, name: str, hint: Any) -> attributes.Attribute:
    """What the class says beyond the type: a default, validators."""
    given = cls.__dict__.get(name, getattr(cls, name, MISSING))
    if isinstance(given, attributes.Attribute):
        spec = given
    elif dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__"):
        spec = attributes.Attribute()  # their own __init__ knows
    else:
        spec = attributes.Attribute(default=given)
    if typing.get_origin(hint) is typing.Annotated:
        checks = tuple(each for each in hint.__metadata__ if callable(each))
        spec = dataclasses.replace(spec, checks=checks + spec.checks)
    return spec


# What is derived ----------------------------------------------------------------------------------


def _set_checked(self: StateModel, name: str, value: Any) -> None:
    """`__setattr__` of classes of the kind `OWN`."""
    field = _shapes[type(self)].fields.get(name)
    if field is not None:
        field.check(type(self).__qualname__, value)
    elif not name.startswith("_") and name != "id" and not hasattr(type(self), name):
        raise AttributeError(f"{type(self).__qualname__} declares no attribute {name!r}")
    object.__setattr__(self, name, value)


def _set_checked_or_other(self: StateModel, name: str, value: Any) -> None:
    """`__setattr__` of dataclasses."""
    field = _shapes[type(self)].fields.get(name)
    if field is not None:
        field.check(type(self).__qualname__, value)
    object.__setattr__(self, name, value)


def fill(model: StateModel, shape: Shape, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """`__init__` of classes of the kind `OWN`. Raises TypeError as any `__init__`."""
    label = type(model).__qualname__
    if len(given) > len(shape.fields):
        raise TypeError(f"{label} has {len(shape.fields)} attributes, {len(given)} were given")
    values = dict(zip(shape.fields, given, strict=False))
    for name, value in named.items():
        if name in values:
            raise TypeError(f"{label} got two values for {name}")
        if name not in shape.fields:
            raise TypeError(f"{label} declares no attribute {name!r}")
        values[name] = value
    for name, field in shape.fields.items():
        if name not in values:
            if field.spec.default is MISSING and field.spec.factory is None:
                raise TypeError(f"{label} needs {name}")
            values[name] = field.new_default()
        setattr(model, name, values[name])


def serialized(model: StateModel, shape: Shape) -> dict[str, Any]:
    """What is kept of a declared model."""
    state: dict[str, Any] = {"id": model.id}
    for name, field in shape.fields.items():
        value = getattr(model, name)
        rule = field.rule
        state[name] = value if rule.is_plain else rule.encode(value)
    return state


def deserialize(model: StateModel, shape: Shape, state: dict[str, Any]) -> None:
    """Take what was kept: all of it or, raising RefusedValue, nothing."""
    label = type(model).__qualname__
    values = {}
    for name, kept in state.items():
        field = shape.fields.get(name)
        if field is not None:
            values[name] = field.decode(label, kept)
        elif name == "id":
            values[name] = kept
        else:
            raise errors.RefusedValue(label, name, "there is no such attribute")
    for name, value in values.items():
        if shape.is_frozen:
            object.__setattr__(model, name, value)
        else:
            setattr(model, name, value)


def check(model: StateModel, shape: Shape) -> None:
    """Check all declared attributes. Raises RefusedValue, or what a validator raises."""
    label = type(model).__qualname__
    for name, field in shape.fields.items():
        field.check(label, getattr(model, name))
    if shape.kind is Kind.ATTRS:
        importlib.import_module("attr").validate(model)
