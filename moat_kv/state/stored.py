"""A model's state as it is kept, in a file or in the tree, and back; over versions of its schema.

Used by `cache_files` and `shared_entry`. In a file it is what `serialize` gave, and the schema
version beside it if that is not 1, so that files of earlier programs load. Pure values.
"""

from __future__ import annotations

import inspect
import typing
from typing import TYPE_CHECKING, Any, TypeVar

from moat_kv.state import attributes, copying, errors, shapes, value_rules

if TYPE_CHECKING:
    from moat_kv.state.model import StateModel

_M = TypeVar("_M", bound="StateModel")

#: The schema version's place in a file.
VERSION_KEY = "__schema_version__"


def pack(model: StateModel) -> dict[str, Any]:
    """What goes into a file."""
    state = model.serialize()
    version = type(model).schema_version
    return state if version == 1 else {**state, VERSION_KEY: version}


def unpack(state: Any) -> tuple[dict[str, Any], int]:
    """The state and its schema version, of what a file has. Raises ValueError."""
    if not isinstance(state, dict):
        raise ValueError(f"a mapping is needed, not {type(state).__name__}")
    version = state.pop(VERSION_KEY, 1)
    if type(version) is not int:
        raise ValueError(f"{version!r} is no schema version")
    return state, version


def restored(pattern: _M, state: dict[str, Any], version: int) -> _M:
    """A model like `pattern`, which is not touched, with that state.

    Raises SchemaTooNew, what `migrate` and `deserialize` raise.
    """
    cls = type(pattern)
    if version > cls.schema_version:
        raise errors.SchemaTooNew(cls.__qualname__, version, cls.schema_version)
    if version < cls.schema_version:
        state = cls.migrate(dict(state), version)
    made = copying.copy_of_object(pattern)
    made.deserialize(**state)
    return made


def schema_of(cls: type[StateModel]) -> dict[str, Any]:
    """A class's schema, as JSON Schema with `version` beside it, for people and the command line.

    Of a class with getters and setters it has what the getters' return types say.
    """
    shape = shapes.shape_of(cls)
    properties: dict[str, Any] = {}
    for name, field in shape.fields.items():
        about = {"description": field.spec.doc} if field.spec.doc else {}
        properties[name] = field.rule.schema | attributes.schema_of(field.spec.checks) | about
    if shape.kind is shapes.Kind.PLAIN:
        properties = {
            name: _getter_schema(each.fget)
            for name, each in inspect.getmembers_static(cls, lambda m: isinstance(m, property))
        }
    schema = {
        "title": cls.__qualname__,
        "type": "object",
        "properties": properties,
        "version": cls.schema_version,
    }
    doc = inspect.getdoc(cls) if cls.__doc__ else None
    if doc and shape.kind is not shapes.Kind.DATACLASS:  # a dataclass makes itself one
        schema["description"] = doc.partition("\n\n")[0]
    return schema


def _getter_schema(getter: Any) -> dict[str, Any]:
    try:
        hint = typing.get_type_hints(getter).get("return", Any)
        return value_rules.rule_of(hint).schema
    except (NameError, TypeError):
        return {}
