"""The table of actions: name, right needed, arguments, handler.

A connection looks a request's action up here, checks the arguments and calls the handler, which
answers at once, or hands a callback to the engine, or opens a stream. Nothing is looked up by a
client's text on any object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from moat_kv import errors
from moat_kv.path import Path
from moat_kv.proto.messages import Request

if TYPE_CHECKING:
    from moat_kv.server.connection import Connection

Types = tuple[type, ...]

PATH: Types = (Path,)
TEXT: Types = (str,)
INT: Types = (int,)
NUMBER: Types = (int, float)
BOOL: Types = (bool,)
LIST: Types = (list,)
BYTES: Types = (bytes,)

#: What most actions require.
ONLY_PATH: Mapping[str, Types] = {"path": PATH}


class Action(NamedTuple):
    """One thing that a client may ask for."""

    name: str
    right: str
    """`open` (before login), `read`, `write`, or `admin`."""
    required: Mapping[str, Types]
    optional: Mapping[str, Types]
    handler: Callable[[Connection, Request], None]

    def check(self, arguments: dict[str, Any]) -> None:
        """Raises BadArguments that names the argument that is unknown, mistyped or missing."""
        required, optional = self.required, self.optional
        if len(arguments) == 1 and required is ONLY_PATH and type(arguments.get("path")) is Path:
            return  # nearly all gets and sets
        for name, value in arguments.items():
            types = required.get(name) or optional.get(name)
            if types is None:
                known = ", ".join([*required, *optional]) or "none"
                raise errors.BadArguments(self.name, f"no argument {name!r:.40}; there is: {known}")
            if type(value) not in types:
                wanted = " or ".join(one.__name__.lower() for one in types)
                raise errors.BadArguments(
                    self.name, f"{name} is a {wanted}, not {type(value).__name__}"
                )
        if len(required) > len(arguments) or not required.keys() <= arguments.keys():
            missing = ", ".join(name for name in required if name not in arguments)
            raise errors.BadArguments(self.name, f"missing {missing}")


def readable(path: Path) -> Path:
    """The path, if plain actions may touch it. Raises BadPath for system data."""
    if path and path[0] is None:
        raise errors.BadPath(str(path), "system data is reached only by the actions made for it")
    return path


def table() -> dict[str, Action]:
    """All actions, by name."""
    from moat_kv.server import (
        binding,
        lost_writes,
        network_facts,
        read_actions,
        session_actions,
        write_actions,
    )

    modules = (
        read_actions,
        write_actions,
        session_actions,
        binding,
        lost_writes,
        network_facts,
    )
    return {action.name: action for module in modules for action in module.ACTIONS}
