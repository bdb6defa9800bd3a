"""Actions that write: set, delete, delete_tree, batch, patch.

Each makes `Write`s and submits them; the engine judges, makes them durable, applies them to the
tree, and then calls back here, where the client is answered.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import anyio
import anyio.lowlevel

from moat_kv import codec, errors
from moat_kv.engine.base import BATCH_LIMIT, Outcome
from moat_kv.entry import Head, Record, Write
from moat_kv.path import Path
from moat_kv.proto import rows
from moat_kv.proto.messages import Request
from moat_kv.server import patching
from moat_kv.server.actions import INT, LIST, ONLY_PATH, PATH, TEXT, Action, readable
from moat_kv.server.connection import WRITE_BYTES, Connection
from moat_kv.server.writes import OPTIONS, SET_OPTIONS, make_write
from moat_kv.tree import tree as tree_module

#: So many entries `delete_tree` deletes as one; a guard and two fences may go with them.
DELETED_TOGETHER = BATCH_LIMIT - 3
#: So many nodes are looked at before others have their turn.
SLICE_NODES = 2_000


def set_(connection: Connection, request: Request) -> None:
    seq, action, arguments, value = request
    if value is None:
        raise errors.BadArguments(action, "the value is missing")
    codec.check(value)
    write = make_write(connection, action, arguments["path"], value, arguments)
    held_bytes = WRITE_BYTES + len(value)
    connection.hold(held_bytes)

    # As `submit` does it, in one step: this is done for most of all writes.
    def done(outcome: Outcome) -> None:
        connection.answered(held_bytes)
        if isinstance(outcome, errors.MoatKvError):
            connection.fail(seq, connection.server.sessions.explained(outcome))
        else:
            record = outcome[0]
            if record.rev < 0:
                connection.server.lost_writes.kept(connection, record.id)
            connection.reply(seq, rows.facts(record))

    connection.server.submit_in_turn(connection, (write,), done)


def _checked_value(request: Request) -> bytes:
    value = request.value
    if value is None:
        raise errors.BadArguments(request.action, "the value is missing")
    codec.check(value)
    return value


def delete(connection: Connection, request: Request) -> None:
    path = request.arguments["path"]
    write = make_write(connection, request.action, path, None, request.arguments)

    def answer(records: Sequence[Record]) -> None:
        record = records[0]
        deleted = record.origin == write.origin and record.tick == write.tick and record.rev != 0
        deleted = deleted and not write.void
        if record.rev < 0:
            connection.server.lost_writes.kept(connection, record.id)
        connection.reply(request.seq, rows.facts(record) | {"deleted": deleted})

    submit(connection, request.seq, (write,), answer)


def submit(
    connection: Connection,
    seq: int,
    writes: Sequence[Write],
    answer: Callable[[Sequence[Record]], None],
) -> None:
    """Hand a group to the engine; answer when it is durable and applied, or say why not."""
    held_bytes = sum([WRITE_BYTES + len(write.value or b"") for write in writes])
    connection.hold(held_bytes)

    def done(outcome: Outcome) -> None:
        connection.answered(held_bytes)
        if isinstance(outcome, errors.MoatKvError):
            connection.fail(seq, connection.server.sessions.explained(outcome))
        else:
            answer(outcome)

    connection.server.submit_in_turn(connection, writes, done)


def batch(connection: Connection, request: Request) -> None:
    """Several writes, all or none: `[[path, value or nil, options], ...]`."""
    asked = request.arguments["writes"]
    if len(asked) > BATCH_LIMIT:
        raise errors.BatchTooLarge(len(asked), BATCH_LIMIT)
    writes = [_batch_write(connection, index, one) for index, one in enumerate(asked)]
    if not writes:
        connection.reply(request.seq, {"rows": []})
        return

    def answer(records: Sequence[Record]) -> None:
        # Not `record.id`: a property costs more than what it does.
        written = [[each.rev, each.at, f"{each.origin}:{each.tick}"] for each in records]
        connection.reply(request.seq, {"rows": written})

    submit(connection, request.seq, writes, answer)


def _batch_write(connection: Connection, index: int, asked: Any) -> Write:
    if type(asked) is not list or len(asked) != 3:
        raise errors.BadArguments("batch", f"write {index} is not [path, value, options]")
    path, value, options = asked
    well_typed = type(path) is Path and type(options) is dict
    if not well_typed or not (value is None or type(value) is bytes):
        raise errors.BadArguments("batch", f"write {index} is not [path, value, options]")
    if options:
        _BATCH_OPTIONS.check(options)
    if value is not None:
        codec.check(value)
    write = make_write(connection, "batch", path, value, options)
    write.strict = True  # also a batch of one
    return write


def patch(connection: Connection, request: Request) -> None:
    """A new value computed from the present one, again until no other write came between."""
    path = readable(request.arguments["path"])
    _checked_value(request)
    connection.server.patches.add(patching.Patch(connection, request, path))


def delete_tree(connection: Connection, request: Request) -> None:
    """Tombstones for the entries that are there now, in atomic groups of `DELETED_TOGETHER`."""
    arguments = request.arguments
    path = readable(arguments["path"])
    min_depth, max_depth = arguments.get("min_depth", 0), arguments.get("max_depth", -1)
    options: dict[str, Any] = {"path": path}
    options |= {name: arguments[name] for name in ("guard", "fence") if name in arguments}
    if min_depth < 0 or max_depth < -1:
        raise errors.BadArguments("delete_tree", "depths count from 0; -1 is without limit")

    # What was asked for before this is deleted, what is asked for later is not.
    asked_at = connection.server.next_tick()

    async def work() -> None:
        await commit(connection, ())  # until what was submitted before this has been applied
        tree = connection.server.store.tree
        count, revision = 0, tree.revision
        below = _groups_below(connection, path, min_depth, max_depth, asked_at)
        async with aclosing(below) as groups:
            async for group in groups:
                records = await _delete_group(connection, group, options, asked_at)
                count += len(records)
                revision = max([revision, *(record.rev for record in records)])
        connection.reply(request.seq, {"count": count, "rev": revision})

    connection.run_later(request.seq, work)


async def _groups_below(
    connection: Connection, path: Path, min_depth: int, max_depth: int, asked_at: int
) -> AsyncGenerator[list[Path], None]:
    node = connection.server.store.tree.find(path)
    if node is None:
        return
    group: list[Path] = []
    walk = tree_module.walk(
        node, path.packed, min_depth=min_depth, max_depth=max_depth, at_root=not path
    )
    for nodes, (packed, found) in enumerate(walk, 1):
        if found.value is not None and not _is_later(connection, found, asked_at):
            group.append(Path.unpack(packed))
        if len(group) == DELETED_TOGETHER:
            yield group
            group = []
        if nodes % SLICE_NODES == 0:
            await anyio.lowlevel.checkpoint()
    if group:
        yield group


def _is_later(connection: Connection, node: Head, asked_at: int) -> bool:
    return node.tick > asked_at and node.origin == connection.server.origin


async def _delete_group(
    connection: Connection, paths: list[Path], options: dict[str, Any], asked_at: int
) -> list[Record]:
    """The deletions, of those that are still to be deleted when their turn has come."""
    while True:
        writes = []
        for path in paths:
            head = connection.server.store.tree.head(path)
            if head is None or head.value is None or _is_later(connection, head, asked_at):
                continue
            write = make_write(connection, "delete_tree", path, None, options)
            write.expect = head.rev
            writes.append(write)
        if not writes:
            return []
        try:
            return list(await commit(connection, writes))
        except errors.Conflict:
            # Something has been written over, or deleted, on the way; look again.
            continue


async def commit(connection: Connection, writes: Sequence[Write]) -> Sequence[Record]:
    """Submit a group and wait for it. Raises what refused it."""
    finished = anyio.Event()
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        finished.set()

    connection.server.submit_in_turn(connection, writes, done)
    await finished.wait()
    outcome = outcomes[0]
    if isinstance(outcome, errors.MoatKvError):
        raise outcome
    return outcome


def _nothing(connection: Connection, request: Request) -> None:
    raise AssertionError("the options of a batch's write are not an action")


#: Checks the options of one write of a batch, with the words of the batch.
_BATCH_OPTIONS = Action("batch", "write", {}, SET_OPTIONS, _nothing)

ACTIONS = (
    Action("set", "write", ONLY_PATH, SET_OPTIONS, set_),
    Action("delete", "write", ONLY_PATH, OPTIONS, delete),
    Action(
        "delete_tree",
        "write",
        ONLY_PATH,
        {"min_depth": INT, "max_depth": INT, "guard": LIST, "fence": LIST},
        delete_tree,
    ),
    Action("batch", "write", {"writes": LIST}, {}, batch),
    Action(
        "patch",
        "write",
        {"path": PATH, "op": TEXT},
        {"fence": LIST, "session": TEXT},
        patch,
    ),
)
