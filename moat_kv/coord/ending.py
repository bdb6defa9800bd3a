"""The steps by which an update's state gets into the tree, and out of it again.

Called by `course`, in the client's event loop. Each step is one write or one batch, and is done
once however often the line breaks: an entry that it alone writes, or has written, says in the
entry's history whether it has happened. Steps that decide what becomes of others' parts are guarded
by the resource's lock.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import anyio

from moat_kv import errors
from moat_kv.client import claiming, writes
from moat_kv.client.client import Client
from moat_kv.coord import resource, stock
from moat_kv.path import Path

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: If more parts than this wait for the last reference to go, they are merged into one, under lock.
CROWD = 64
#: So many parts are taken at once, as a batch has a limit.
TAKEN_LIMIT = 400
#: So far back an entry's history is searched for what was written there.
VERSIONS = 100


class Beside(enum.Enum):
    """What became of an update whose session is over while others may hold the resource."""

    ALONE = "nobody else holds it, so it is to be executed; nothing was done"
    CROWDED = "many parts wait already and are to be merged; nothing was done"
    CACHED = "it waits for the others"
    LEFT = "it waits, and nobody holds the resource any more"


async def once(
    client: Client, act: Callable[[], Awaitable[_T]], done: Callable[[], Awaitable[_T | None]]
) -> _T:
    """Do something that must not be done twice.

    Where it is not known whether it happened, `done` is asked until it is, also while the server is
    cut off: whoever is told of a failure may rely on that nothing has happened.
    """
    in_doubt = asked_before = False

    async def ask() -> _T:
        nonlocal in_doubt, asked_before
        if in_doubt:
            found = await claiming.patiently(client, done)
            if found is not None:
                return found
            in_doubt = False
        try:
            return await _whole(act)
        except (errors.Unknown, errors.RequestTimeout):
            in_doubt = asked_before = True
            raise
        except (errors.Conflict, errors.StaleFence):
            # One that was given up may have come to the server late.
            found = await claiming.patiently(client, done) if asked_before else None
            if found is None:
                raise
            return found

    return await claiming.patiently(client, ask, claiming.BREAKS)


async def _whole(act: Callable[[], Awaitable[_T]]) -> _T:
    """One request with its answer: who is cancelled in between would not know what happened."""
    with anyio.CancelScope(shield=True):
        result = await act()
    return result  # noqa: RET504  # for mypy a scope may end here without one


async def written(client: Client, path: Path, serial: str) -> int | None:
    """The revision of the version of an entry that has this serial; None: there never was one."""
    for version in await client.history(path, limit=VERSIONS):
        value = version.get("value")
        if isinstance(value, Mapping) and value.get("serial") == serial:
            return version.rev
    return None


async def read(client: Client, base: Path) -> stock.Stock:
    """What there is of a resource now."""
    return await claiming.patiently(client, lambda: stock.read(client, base), claiming.BREAKS)


async def keep(
    client: Client,
    path: Path,
    value: Mapping[str, Any],
    rev: int,
    others: Sequence[writes.WriteOp] = (),
) -> int | None:
    """Write a part of one's own; its revision, or None if somebody has taken it over.

    `rev`: what it had, 0 if it is new. `value` has a `serial` that no other version has. `others`:
    writes that go with it, all or nothing.
    """

    async def act() -> int:
        if others:
            op = client.op_set(path, value, expect=rev)
            return (await client.batch([op, *others]))[0].rev
        return (await client.set(path, value, expect=rev, strict=True)).rev

    try:
        return await once(client, act, lambda: written(client, path, value["serial"]))
    except errors.Conflict:
        return None


async def keep_mapped(
    client: Client,
    base: Path,
    key: str,
    value: Mapping[str, Any],
    kept: tuple[Path, int] | None,
    others: Sequence[writes.WriteOp],
) -> int | None:
    """Have the server merge a part into the entry of all conflict-free parts of a resource.

    `kept`: where the same part was until now, and its revision; None if nowhere. `others` follow.
    The revision of that entry, or None if somebody has taken the part over.
    """
    place = base / resource.CACHED

    async def act() -> int:
        return (await client.patch(place, "merge", {key: value}, fence=kept)).rev

    async def done() -> int | None:
        for version in await client.history(place, limit=VERSIONS):
            if key in (version.get("value") or ()):
                return version.rev
        return None

    try:
        rev = await once(client, act, done)
    except errors.StaleFence:
        return None
    # Until this is done the part is there twice, under one key, and counts once.
    ops = [*others, *([client.op_delete(kept[0])] if kept is not None else [])]
    if ops:
        await write(client, ops)
    return rev


async def write(client: Client, ops: Sequence[writes.WriteOp]) -> None:
    """Writes that may be done twice, all or nothing; also trouble that lasts is waited out."""
    await claiming.patiently(client, lambda: _whole(lambda: client.batch(ops)))


async def replace(
    client: Client, new: writes.WriteOp, serial: str, ops: Sequence[writes.WriteOp]
) -> int:
    """Put one entry in the place of others; its revision.

    Raises StaleFence if the lock that guards it has passed on, Conflict if the others are not what
    they were.
    """

    async def act() -> int:
        return (await client.batch([new, *ops]))[0].rev

    return await once(client, act, lambda: written(client, new.path, serial))


def removals(
    client: Client, base: Path, found: stock.Stock, taken: Sequence[stock.Part]
) -> list[writes.WriteOp]:
    """The writes that take parts out of the tree; they hold only if these are what was read."""
    ops = []
    for part in taken:
        if part.kept_rev:
            place = base / resource.KEPT / part.key
            ops.append(client.op_delete(place, expect=part.kept_rev))
    gone = {part.key for part in taken if part.mapped}
    if gone:
        place = base / resource.CACHED
        left = {key: value for key, value in found.cached.items() if key not in gone}
        if left:
            ops.append(client.op_set(place, left, expect=found.cached_rev))
        else:
            ops.append(client.op_delete(place, expect=found.cached_rev))
    return ops


async def note_failure(client: Client, base: Path, todo: stock.Todo) -> None:
    """Tell who looks that an execution failed; as well as it can be told now."""
    place = base / resource.TODO / todo.key
    try:
        found = await client.get(place)
        if "value" in found:
            await client.set(place, todo.value, expect=found.rev)
    except errors.MoatKvError as exc:
        logger.info("cannot note that %s failed: %s", base, exc)


async def finish(client: Client, base: Path, key: str) -> None:
    """What was to be executed has been."""
    place = base / resource.TODO / key
    await claiming.patiently(client, lambda: client.delete(place, strict=True))


async def is_to_be_done(client: Client, base: Path, key: str) -> bool:
    """Whether nobody has executed it yet."""
    place = base / resource.TODO / key
    return "value" in await claiming.patiently(client, lambda: client.get(place), claiming.BREAKS)
