"""Reading and writing entries for the commands: what `data`, `code` and `run` have in common.

Everything here takes a connected client. Compare-and-set loops live here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from moat_kv import codec, config, errors
from moat_kv.path import Path
from moat_kv_cli import values

if TYPE_CHECKING:
    from moat_kv import Client

#: So often a change is tried anew when others write the same entry at the same time.
TRIES = 100
#: One batch of a bulk load: entries, and bytes of their values; well within a server's limits.
BATCH_ENTRIES = 500
BATCH_BYTES = 256 * 1024


async def require(client: Client, path: Path) -> Any:
    """The entry with its value. Raises NotFound, with a hint if there are entries below."""
    result = await client.get(path)
    if "value" in result:
        return result
    raise await not_found(client, path)


async def not_found(client: Client, path: Path) -> errors.NotFound:
    """The error for an entry that is not there."""
    below = len(await client.list(path))
    return errors.NotFound("entry at", str(path), **hint_below(below))


async def require_any(client: Client, path: Path) -> None:
    """Raises NotFound if there is no entry at or below a path; the root is always there."""
    if path:
        async for _ in client.get_tree(path):
            return
        raise nothing_there(path)


def nothing_there(path: Path) -> errors.NotFound:
    """The error for a subtree that has no entries."""
    return errors.NotFound("entry at or below", str(path))


def hint_below(count: int) -> dict[str, str]:
    """The facts of a NotFound for a path that has something below it."""
    return {"hint": f"`list` shows what is below it ({count})"} if count else {}


async def change(
    client: Client,
    path: Path,
    how: Callable[[Any], Any],
    *,
    expect: int | None = None,
    **options: Any,
) -> Any:
    """Replace a value by what `how` makes of it (`values.NOTHING`: there is none), atomically.

    Others' writes in between lead to another try, unless `expect` says which revision to change.
    Returns the write's result. Raises Conflict, and what `how` raises.
    """
    tries = TRIES
    while True:
        tries -= 1
        old = await client.get(path)
        if expect is not None and old.rev != expect:
            raise errors.Conflict(str(path), expect, old.rev)
        new = how(old.get("value", values.NOTHING))
        try:
            return await client.set(path, new, expect=old.rev, **options)
        except errors.Conflict:
            if expect is not None or not tries:
                raise


async def delete(client: Client, path: Path, *, expect: int | None = None) -> dict[str, Any] | None:
    """Delete one entry; the facts of the deletion, see `written`; None: there was nothing."""
    done = await client.delete(path, expect=expect)
    return written(done) if done.deleted else None


def written(result: Any) -> dict[str, Any]:
    """`rev` and `at` of what was written, and `pending` if the network does not have it yet."""
    facts = {"rev": result.rev, "at": result.at}
    return facts | {"pending": True} if result.pending else facts


async def session_places(client: Client) -> tuple[Path, ...]:
    """Where claims and locks are: they belong to sessions, which no file brings back.

    Written without its session, a claim would keep its job from every runner for good.
    """
    places = await config.load_places(client)
    return (places.claim, places.lock)


def is_within(path: Path, places: Iterable[Path]) -> bool:
    """Whether the path is one of these places, or below one."""
    return any(path.startswith(each) for each in places)


async def write_all(
    client: Client, entries: Iterable[tuple[Path, Any]], *, idem: bool = False
) -> int:
    """Set many entries (`values.NOTHING`: delete it), in batches; how many there were."""
    count = size = 0
    batch: dict[Path, Any] = {}
    for path, value in entries:
        more = 0 if value is values.NOTHING else len(codec.pack(value))
        full = len(batch) >= BATCH_ENTRIES or size + more > BATCH_BYTES or path in batch
        if batch and full:
            await _write_batch(client, batch, idem)
            batch, size = {}, 0
        batch[path] = value
        size += more + len(path.packed)
        count += 1
    await _write_batch(client, batch, idem)
    return count


async def _write_batch(client: Client, batch: dict[Path, Any], idem: bool) -> None:
    if len(batch) == 1:
        # A frame of its own: the longest value that was once set has to fit again.
        ((path, value),) = batch.items()
        if value is values.NOTHING:
            await client.delete(path)
        else:
            await client.set(path, value, idem=idem)
    elif batch:
        await client.batch(
            [
                client.op_delete(path)
                if value is values.NOTHING
                else client.op_set(path, value, idem=idem)
                for path, value in batch.items()
            ]
        )


def row(entry: Any, path: Path) -> dict[str, Any]:
    """An entry as a row for printing: path (as text), value, rev, at, id, `deleted`, `pending`."""
    shown: dict[str, Any] = {"path": str(path)}
    if "value" in entry:
        shown["value"] = entry["value"]
    else:
        shown["deleted"] = True
    for name in ("rev", "at", "id"):
        if name in entry:
            shown[name] = entry[name]
    if entry.pending:
        shown["pending"] = True
    return shown
