"""Shared models seen from outside, without their classes: what the command line does.

Everything takes a client of the event loop that runs. A change from here is a commit like any
other: under the model's lock, by compare-and-set, checked against the schema as far as that goes.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moat_kv import config, errors
from moat_kv.coord import aio
from moat_kv.path import Path
from moat_kv.state import sharing

if TYPE_CHECKING:
    from moat_kv.client.client import Client
    from moat_kv.client.results import Entry

_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A model in the tree, or an earlier state of it."""

    name: Path
    """The class's name, and the id of one of several."""
    state: Mapping[str, Any] | None
    """As `serialize` gave it; None: it was deleted."""
    version: int
    """Of the schema; 0: not known."""
    rev: int
    at: float | None
    by: str
    """Of the commit."""


def stored_of(name: Path, found: Entry) -> Stored:
    """The model in an entry. Raises BadValue if it is none."""
    value = found.get("value")
    at = found.get("at")
    if value is None:
        return Stored(name=name, state=None, version=0, rev=found.rev, at=at, by="")
    try:
        state, version, by = dict(value["state"]), value["version"], value["by"]
    except (KeyError, TypeError, ValueError) as exc:
        wanted = "a mapping with `state` (a mapping), `version` and `by`"
        raise errors.BadValue(f"this is not the state of a model: {wanted}", name) from exc
    return Stored(name=name, state=state, version=version, rev=found.rev, at=at, by=by)


async def place_of(client: Client) -> Path:
    """Where models are."""
    return (await config.load_places(client)).model


async def find_all(client: Client, under: Path) -> list[Stored]:
    """All models of that name or below it, sorted; what is no model is left out."""
    place = await place_of(client)
    found = []
    async for row in client.get_tree(place + under):
        name = under + row.path
        if name and name[-1] is not None:
            try:
                found.append(stored_of(name, row))
            except errors.BadValue:
                continue
    return sorted(found, key=lambda each: each.name)


async def find(client: Client, name: Path) -> Stored:
    """One model. Raises NotFound, BadValue."""
    found = await client.get(await place_of(client) + name)
    if "value" not in found:
        raise errors.NotFound("model", str(name), hint="`model list` shows what there is")
    return stored_of(name, found)


async def schema_of(client: Client, name: Path) -> dict[str, Any]:
    """What the class of a model declares, as JSON Schema. Raises NotFound."""
    found = await client.get(sharing.schema_path(await place_of(client), str(name[0])))
    if "value" not in found:
        raise errors.NotFound("schema of", str(name))
    schema: dict[str, Any] = found.value
    return schema


async def change(
    client: Client,
    name: Path,
    how: Callable[[dict[str, Any]], object],
    *,
    wait_s: float,
) -> Entry:
    """Commit what `how` makes of a model's state; the write's result.

    Raises NotFound, BadValue if the schema does not allow it, AlreadyLocked if the lock was not to
    be had in `wait_s` seconds, Conflict, Detached.
    """
    schema = await schema_of(client, name)
    async with aio.Process(client) as process:
        lock = process.lock(Path(sharing.LOCKS) + name, timeout_s=wait_s)
        async with lock:
            present = await find(client, name)
            state = changed(dict(present.state or {}), how, name)
            check(schema, state)
            value = {
                "state": state,
                "version": present.version,
                "by": f"by-hand.{uuid.uuid4().hex}",
            }
            path = await place_of(client) + name
            return await client.set(path, value, expect=present.rev, fence=lock.guard, strict=True)


def changed(
    present: Mapping[str, Any], how: Callable[[dict[str, Any]], object], name: Path
) -> dict[str, Any]:
    """What `how` makes of a state, with its id. Raises BadValue if that lacks an attribute."""
    state = how(dict(present))
    if not isinstance(state, Mapping):
        raise errors.BadValue("the state of a model is a mapping", name)
    state = {each: present[each] for each in ("id",) if each in present} | dict(state)
    for each in present:
        if each not in state:
            raise errors.BadValue("a state has all attributes; this one is missing", each)
    return state


def check(schema: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raises BadValue for attributes that are not declared, or of another type or out of limits."""
    declared = schema["properties"]
    for name, value in state.items():
        if name in declared:
            if not fits(declared[name], value):
                wanted = in_words(declared[name])
                raise errors.BadValue(f"{value!r} does not fit; {wanted} does", name)
        elif name != "id":
            raise errors.BadValue(f"there is no attribute {name!r}", name)


def in_words(schema: Mapping[str, Any]) -> str:
    """What fits a schema, for people."""
    if "anyOf" in schema:
        return " or ".join(in_words(each) for each in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    words = [str(schema.get("type", "anything"))]
    for key, word in (("minimum", "from"), ("maximum", "to"), ("pattern", "like")):
        if key in schema:
            words.append(f"{word} {schema[key]}")
    if schema.get("items"):
        words.append(f"of {in_words(schema['items'])}")
    return " ".join(words)


def fits(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a value has the type that a schema names, and is within its limits."""
    if not _is_within(schema, value):
        return False
    if "anyOf" in schema:
        return any(fits(each, value) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    wanted = _TYPES.get(schema.get("type", ""))
    if wanted is None:
        return True
    if isinstance(value, bool) and bool not in wanted:
        return False
    if isinstance(value, list) and "items" in schema and schema["items"]:
        return list in wanted and all(fits(schema["items"], each) for each in value)
    return isinstance(value, wanted)


def _is_within(schema: Mapping[str, Any], value: Any) -> bool:
    if isinstance(value, int | float):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, str) and "pattern" in schema:
        return re.fullmatch(schema["pattern"], value) is not None
    return True
