"""Writes that lost against another one: found, put back, forgotten.

A plain write that a server kept while it was cut off may lose when it comes into the network; it is
kept as an entry then (`engine.conflicts`). The command line and users call these with a client;
`losses` tells a client of its own. Nothing here decides who wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from moat_kv import config, errors
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.client.client import Client

#: Below this place each has an entry; that of `engine.conflicts`, which no client has to import.
PLACE = config.ROOT / "conflict"
#: So many are forgotten in one batch.
TOGETHER = 500


class Winner(NamedTuple):
    """The write that stands. `at`: when it was made, seconds since 1970."""

    id: str
    at: float
    node: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LostWrite:
    """A write that was answered, and is not what its path has. Times are seconds since 1970."""

    id: str
    """Of its record, `node:incarnation:tick`: what the write's answer has as `id`."""
    path: Path
    at: float
    """When it was made, in the engine's time."""
    node: str
    """The server that took it."""
    deleted: bool
    """It deleted the entry; then `value` is None."""
    value: Any
    winner: Winner | None
    """None: a deletion that is forgotten."""
    rev: int = 0
    """Of the entry that keeps it."""

    @property
    def place(self) -> Path:
        """Where it is kept."""
        return PLACE / self.id


def of_value(value: Any, rev: int = 0) -> LostWrite:
    """The lost write in an entry's value. Raises BadValue if it is none."""
    try:
        winner = value.get("winner")
        return LostWrite(
            id=value["id"],
            path=value["path"],
            at=value["at"],
            node=value["node"],
            deleted="value" not in value,
            value=value.get("value"),
            winner=None if winner is None else Winner(winner["id"], winner["at"], winner["node"]),
            rev=rev,
        )
    except (AttributeError, KeyError, TypeError) as exc:
        raise errors.BadValue(f"not a conflict: {exc!r}") from None


async def find_all(client: Client, *, under: Path | None = None) -> list[LostWrite]:
    """All that are kept, the latest first; `under`: only those of paths there or below."""
    found = []
    async for row in client.get_tree(PLACE, min_depth=1, max_depth=1):
        try:
            each = of_value(row.value, row.rev)
        except errors.BadValue:
            continue  # somebody's own entry
        if under is None or each.path.startswith(under):
            found.append(each)
    found.sort(key=lambda each: (each.at, each.id), reverse=True)
    return found


async def find(client: Client, id: str) -> LostWrite:
    """The one with this id. Raises NotFound."""
    result = await client.get(PLACE / id)
    if "value" not in result:
        raise errors.NotFound("conflict", id, hint="`conflict list` shows what there is")
    return of_value(result.value, result.rev)


async def restore(client: Client, lost: LostWrite, *, expect: int | None = None) -> int:
    """Do again what the write did, and forget that it had lost; the path's new revision.

    Both together, by compare-and-set on what the path has now, or on the revision `expect`
    (0: nothing is there). 0 is returned where a deletion finds nothing to delete. Raises Conflict,
    if the path changes meanwhile or somebody else was quicker; Detached.
    """
    present = await client.get(lost.path)
    if expect is not None and present.rev != expect:
        raise errors.Conflict(str(lost.path), expect, present.rev)
    forget = client.op_delete(lost.place, expect=lost.rev)
    if not lost.deleted:
        put = client.op_set(lost.path, lost.value, expect=present.rev)
    elif "value" in present:
        put = client.op_delete(lost.path, expect=present.rev)
    else:
        await client.batch([forget])
        return 0
    try:
        written, _gone = await client.batch([put, forget])
    except errors.FrameTooLarge:
        # The longest value that was once set fits a frame of its own only.
        written = await client.set(lost.path, lost.value, expect=present.rev, strict=True)
        await client.delete(lost.place)
    return written.rev


async def clear(client: Client, ids: Iterable[str]) -> None:
    """Forget these; those that are not there any more count as forgotten."""
    ops = [client.op_delete(PLACE / id) for id in ids]
    for start in range(0, len(ops), TOGETHER):
        await client.batch(ops[start : start + TOGETHER])
