"""What there is of a resource in the tree: who refers to it, and what was merged for it so far.

Read by references and updates in one request, and changed by them in batches. A part is the state
of one update: of one whose session is over and that waits for the last reference to go, or of one
that goes on but is kept against its process' sudden end. What is to be executed is on its own: it
is never merged into anything again, and keeps the id of its execution until that has succeeded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from moat_kv.client import results
from moat_kv.client.client import Client
from moat_kv.coord import resource
from moat_kv.path import Path


@dataclass(frozen=True, kw_only=True)
class Part:
    """The state of one update."""

    key: str
    rev: int
    kind: str
    """Which kind of update it is the state of."""
    state: Mapping[str, Any]
    reference: str | None
    """The key of the reference under which it goes on; None if its session is over."""
    mapped: bool = False
    """It is one of several in the one entry that conflict-free updates share."""
    kept_rev: int = 0
    """The revision of its own entry; 0 if it has none."""


@dataclass(frozen=True, kw_only=True)
class Todo:
    """What is to be executed. Its key is the id of the execution."""

    key: str
    rev: int
    kind: str
    state: Mapping[str, Any]
    process: str = ""
    """Whose it is to execute it, while that process lives."""
    tries: int = 0
    reason: str | None = None
    """Why the last try failed."""

    @property
    def value(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "kind": self.kind,
            "state": self.state,
            "process": self.process,
            "serial": self.key,
            **self.failure,
        }

    @property
    def failure(self) -> dict[str, Any]:
        """What is stored of its failures."""
        return {"tries": self.tries, "reason": self.reason}


@dataclass(kw_only=True)
class Stock:
    """Everything of one resource, but for its line."""

    references: dict[str, str] = field(default_factory=dict)
    """The processes, by their entries' keys."""
    parts: list[Part] = field(default_factory=list)
    """In the order in which they were written."""
    todos: list[Todo] = field(default_factory=list)
    cached_rev: int = 0
    """Of the entry that holds the `mapped` parts; 0: there is none."""
    cached: Mapping[str, Any] = field(default_factory=dict)
    """What that entry holds."""
    times: int = 0
    times_rev: int = 0

    def others(self, own: Collection[str]) -> bool:
        """Whether anybody refers to it beside these entries."""
        return any(key not in own for key in self.references)

    def ended(self) -> list[Part]:
        """The parts that nobody goes on with."""
        return [each for each in self.parts if each.reference not in self.references]

    def orphaned(self, live: Collection[str]) -> tuple[list[Todo], list[Part]]:
        """What nobody will see to: of the processes only these are alive."""
        todos = [each for each in self.todos if each.process not in live]
        return todos, [] if self.references else self.ended()

    def doubtful(self, live: Collection[str]) -> bool:
        """Whether something waits for a process that is not known to be alive."""
        dead = any(each not in live for each in self.references.values())
        return dead and bool(self.parts)


async def read(client: Client, base: Path) -> Stock:
    """What there is now; one request."""
    stock = Stock()
    async for row in client.get_tree(base, min_depth=1, max_depth=2):
        note(stock, row.path, row)
    stock.parts = _distinct(stock.parts)
    stock.todos.sort(key=lambda todo: todo.rev)
    return stock


def _distinct(parts: list[Part]) -> list[Part]:
    """In the order of writing. One that is on its way into the shared entry is there only once."""
    mapped = {part.key for part in parts if part.mapped}
    own = {part.key: part.kept_rev for part in parts if not part.mapped}
    found = [
        dataclasses.replace(part, kept_rev=own.get(part.key, 0)) if part.mapped else part
        for part in parts
        if part.mapped or part.key not in mapped
    ]
    return sorted(found, key=lambda part: part.rev)


def note(stock: Stock, path: Path, row: results.Result) -> None:
    """Put one entry where it belongs; `path` is below the resource. Others are passed over."""
    kind, value = path[0], row.value
    if kind == resource.TIMES and len(path) == 1:
        stock.times_rev = row.rev
        stock.times = value if isinstance(value, int) else 0
    elif kind == resource.CACHED and len(path) == 1:
        stock.cached_rev, stock.cached = row.rev, value
        stock.parts += [
            _part(str(key), row.rev, each, mapped=True)
            for key, each in value.items()
            if isinstance(each, Mapping)
        ]
    elif len(path) == 2 and kind in _PLACES and isinstance(value, Mapping):
        _PLACES[kind](stock, str(path[1]), row)


def _note_reference(stock: Stock, key: str, row: results.Result) -> None:
    stock.references[key] = str(row.value.get("process"))


def _note_part(stock: Stock, key: str, row: results.Result) -> None:
    stock.parts.append(dataclasses.replace(_part(key, row.rev, row.value), kept_rev=row.rev))


def _note_todo(stock: Stock, key: str, row: results.Result) -> None:
    value = row.value
    todo = Todo(
        key=key,
        rev=row.rev,
        kind=str(value.get("kind")),
        state=value.get("state", {}),
        process=str(value.get("process", "")),
        tries=value.get("tries", 0),
        reason=value.get("reason"),
    )
    stock.todos.append(todo)


_PLACES = {
    resource.REFERENCES: _note_reference,
    resource.KEPT: _note_part,
    resource.TODO: _note_todo,
}


def _part(key: str, rev: int, value: Mapping[str, Any], *, mapped: bool = False) -> Part:
    return Part(
        key=key,
        rev=rev,
        kind=str(value.get("kind")),
        state=value.get("state", {}),
        reference=value.get("reference"),
        mapped=mapped,
    )


def part_value(
    kind: str, state: Mapping[str, Any], reference: str | None, serial: str
) -> dict[str, Any]:
    """A part as it is stored. `serial`: of this version, different from that of any other."""
    return {"kind": kind, "state": state, "reference": reference, "serial": serial}
