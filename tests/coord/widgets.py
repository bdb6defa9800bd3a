"""Updates that count clicks of widgets, in memory, for tests."""

from __future__ import annotations

from typing import Any

from moat_kv import coord
from moat_kv.coord import aio

#: What was executed: the resource, the document, the id of the execution.
DONE: list[tuple[str, dict[str, Any], str]] = []
#: How often executing is to fail yet, by resource.
FAIL: dict[str, int] = {}


def execute(update: Any) -> None:
    """Write an update down, or fail."""
    assert update.execution_id is not None
    if FAIL.get(update._id, 0) > 0:
        FAIL[update._id] -= 1
        raise OSError("the database is away")
    DONE.append((update._id, dict(update.doc), update.execution_id))


def merge(update: Any, other: Any) -> None:
    """Add the counts."""
    for key, value in other.doc.items():
        update.doc[key] = update.doc.get(key, 0) + value


class Clicks(aio.Update):
    """Async."""

    kind = "Clicks"

    def merge(self, other: Clicks) -> None:
        merge(self, other)

    async def execute(self) -> None:
        execute(self)


class PlainClicks(coord.Update):
    """For threads; of the same kind."""

    kind = "Clicks"

    def merge(self, other: PlainClicks) -> None:
        merge(self, other)

    def execute(self) -> None:
        execute(self)


class FreeClicks(aio.ConflictFreeUpdate):
    """Merged by the server."""

    def execute(self) -> None:
        execute(self)


def total(name: str = "w") -> int:
    """The clicks that were executed for a widget."""
    return sum(doc.get("clicks", 0) for id_, doc, _ in DONE if id_ == name)


class Own(aio.Update):
    """With attributes of its own, in the two ways of clearing them."""

    def __init__(self, *args: Any, foo: int = 0, **kwargs: Any) -> None:
        self.foo = foo
        super().__init__(*args, **kwargs)

    def state(self) -> dict[str, Any]:
        return {"foo": self.foo}

    def clear(self) -> dict[str, Any]:
        return {"foo": 0}

    def merge(self, other: Own) -> None:
        self.foo += other.foo

    def execute(self) -> None:
        DONE.append((self._id, {"foo": self.foo}, str(self.execution_id)))


class Widget:
    """Stands for a class of a database."""
