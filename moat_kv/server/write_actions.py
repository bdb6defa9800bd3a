"""Actions that write: set, delete, delete_tree, batch, patch.

Each makes `Write`s and submits them; the engine judges, makes them durable, applies them to the
tree, and then calls back here, where the client is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio

from moat_kv import codec, errors
from moat_kv.engine.base import BATCH_LIMIT, Outcome
from moat_kv.entry import Guard, Record, Write
from moat_kv.path import Path
from moat_kv.proto.messages import Request
from moat_kv.server.actions import BOOL, INT, LIST, NUMBER, PATH, TEXT, Action, readable
from moat_kv.server.connection import Connection
from moat_kv.tree import patch as patch_module
from moat_kv.tree import tree as tree_module

_OPTIONS = {
    "expect": INT,
    "guard": LIST,
    "fence": LIST,
    "session": TEXT,
    "strict": BOOL,
}
_SET_OPTIONS = {**_OPTIONS, "idem": BOOL, "ttl_s": NUMBER}
#: So often a patch is tried anew when another write came between; each time somebody has won.
PATCH_TRIES = 1_000
#: A time to live is at most this, in seconds: ten years.
TTL_LIMIT_S = 10 * 366 * 86_400


def set_(connection: Connection, request: Request) -> None:
    value, arguments, seq = _checked_value(request), request.arguments, request.seq
    write = make_write(connection, request.action, arguments["path"], value, arguments)
    submit(connection, seq, (write,), lambda records: _answer_one(connection, seq, records))


def _checked_value(request: Request) -> bytes:
    value = request.value
    if value is None:
        raise errors.BadArguments(request.action, "the value is missing")
    codec.check(value)
    return value


def _answer_one(connection: Connection, seq: int, records: Sequence[Record]) -> None:
    record = records[0]
    connection.reply(seq, {"rev": record.rev, "at": record.at, "id": record.id})


def delete(connection: Connection, request: Request) -> None:
    path = request.arguments["path"]
    write = make_write(connection, request.action, path, None, request.arguments)

    def answer(records: Sequence[Record]) -> None:
        record = records[0]
        deleted = record.origin == write.origin and record.tick == write.tick and record.rev > 0
        fields = {"rev": record.rev, "at": record.at, "id": record.id, "deleted": deleted}
        connection.reply(request.seq, fields)

    submit(connection, request.seq, (write,), answer)


def make_write(
    connection: Connection, action: str, path: Path, value: bytes | None, options: dict[str, Any]
) -> Write:
    """The write that a client asks for, with its guards. Raises BadPath, BadArguments, ..."""
    server = connection.server
    if path.keys and path[0] is None:
        readable(path)
    write = Write(path, value, origin=server.origin, tick=server.next_tick())
    if len(options) > 1 or "path" not in options:
        _add_options(connection, action, write, options)
    return write


def _add_options(
    connection: Connection, action: str, write: Write, options: dict[str, Any]
) -> None:
    guards = [_guard(action, kind, options[kind]) for kind in ("guard", "fence") if kind in options]
    session = options.get("session")
    if session is not None:
        guards.append(connection.server.sessions.guard(connection, session))
        write.session = session
    write.guards = tuple(guards)
    write.idem = options.get("idem", False)
    expect = options.get("expect")
    if expect is not None:
        if expect < 0:
            raise errors.BadArguments(action, "expect is a revision, or 0 for none")
        write.expect = expect
    ttl_s = options.get("ttl_s")
    if ttl_s is not None:
        if not 0 < ttl_s <= TTL_LIMIT_S:
            raise errors.BadArguments(action, f"ttl_s is above 0 and at most {TTL_LIMIT_S}")
        write.expires_at = connection.server.now() + ttl_s


def _guard(action: str, kind: str, given: list[Any]) -> Guard:
    if len(given) != 2 or type(given[0]) is not Path or type(given[1]) is not int or given[1] < 1:
        raise errors.BadArguments(action, f"{kind} is [path, revision]")
    return Guard(readable(given[0]), given[1], kind)


def submit(
    connection: Connection,
    seq: int,
    writes: Sequence[Write],
    answer: Callable[[Sequence[Record]], None],
) -> None:
    """Hand a group to the engine; answer when it is durable and applied, or say why not."""
    connection.unanswered += 1

    def done(outcome: Outcome) -> None:
        connection.answered()
        if isinstance(outcome, errors.MoatKvError):
            connection.fail(seq, outcome)
        else:
            answer(outcome)

    connection.server.engine.submit(writes, done)


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
        rows = [[record.rev, record.at, record.id] for record in records]
        connection.reply(request.seq, {"rows": rows})

    submit(connection, request.seq, writes, answer)


def _batch_write(connection: Connection, index: int, asked: Any) -> Write:
    if type(asked) is not list or len(asked) != 3:
        raise errors.BadArguments("batch", f"write {index} is not [path, value, options]")
    path, value, options = asked
    well_typed = type(path) is Path and type(options) is dict
    if not well_typed or not (value is None or type(value) is bytes):
        raise errors.BadArguments("batch", f"write {index} is not [path, value, options]")
    _BATCH_OPTIONS.check(options)
    if value is not None:
        codec.check(value)
    return make_write(connection, "batch", path, value, options)


def patch(connection: Connection, request: Request) -> None:
    """A new value computed from the present one, again until no other write came between."""
    arguments = request.arguments
    path, op = readable(arguments["path"]), arguments["op"]
    operand = codec.unpack(_checked_value(request))
    options: dict[str, Any] = {"path": path}
    options |= {name: arguments[name] for name in ("fence", "session") if name in arguments}
    tries = 0

    def attempt() -> None:
        head = connection.server.store.tree.find(path)
        old, rev = patch_module.ABSENT, 0
        if head is not None and head.value is not None:
            old, rev = codec.unpack(head.value), head.rev
        value = codec.pack(patch_module.patched(str(path), op, old, operand))
        write = make_write(connection, "patch", path, value, options)
        write.expect = rev
        connection.server.engine.submit((write,), lambda outcome: done(value, outcome))

    def done(value: bytes, outcome: Outcome) -> None:
        nonlocal tries
        tries += 1
        if isinstance(outcome, errors.Conflict) and tries < PATCH_TRIES:
            try:
                attempt()
            except errors.MoatKvError as exc:
                outcome = exc
            else:
                return
        connection.answered()
        if isinstance(outcome, errors.MoatKvError):
            connection.fail(request.seq, outcome)
            return
        record = outcome[0]
        fields = {"rev": record.rev, "at": record.at, "id": record.id}
        connection.reply(request.seq, fields, value)

    connection.unanswered += 1
    try:
        attempt()
    except errors.MoatKvError:
        connection.unanswered -= 1
        raise


def delete_tree(connection: Connection, request: Request) -> None:
    """Tombstones for the entries that are there now, in atomic groups of at most `BATCH_LIMIT`."""
    arguments = request.arguments
    path = readable(arguments["path"])
    min_depth, max_depth = arguments.get("min_depth", 0), arguments.get("max_depth", -1)
    options: dict[str, Any] = {"path": path}
    options |= {name: arguments[name] for name in ("guard", "fence") if name in arguments}
    if min_depth < 0 or max_depth < -1:
        raise errors.BadArguments("delete_tree", "depths count from 0; -1 is without limit")

    async def work() -> None:
        count, revision = 0, connection.server.store.tree.revision
        for group in _groups(_entries_below(connection, path, min_depth, max_depth)):
            writes = [make_write(connection, "delete_tree", one, None, options) for one in group]
            records = await commit(connection, writes)
            ticks = {write.tick for write in writes}
            count += sum(1 for record in records if record.tick in ticks and record.rev)
            revision = max([revision, *(record.rev for record in records)])
        connection.reply(request.seq, {"count": count, "rev": revision})

    connection.run_later(request.seq, work)


def _entries_below(
    connection: Connection, path: Path, min_depth: int, max_depth: int
) -> list[Path]:
    node = connection.server.store.tree.find(path)
    if node is None:
        return []
    walk = tree_module.walk(
        node, path.packed, min_depth=min_depth, max_depth=max_depth, at_root=not path
    )
    return [Path.unpack(packed) for packed, found in walk if found.value is not None]


def _groups(paths: list[Path]) -> list[list[Path]]:
    return [paths[start : start + BATCH_LIMIT] for start in range(0, len(paths), BATCH_LIMIT)]


async def commit(connection: Connection, writes: Sequence[Write]) -> Sequence[Record]:
    """Submit a group and wait for it. Raises what refused it."""
    finished = anyio.Event()
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        finished.set()

    connection.server.engine.submit(writes, done)
    await finished.wait()
    outcome = outcomes[0]
    if isinstance(outcome, errors.MoatKvError):
        raise outcome
    return outcome


def _nothing(connection: Connection, request: Request) -> None:
    raise AssertionError("the options of a batch's write are not an action")


#: Checks the options of one write of a batch, with the words of the batch.
_BATCH_OPTIONS = Action("batch", "write", {}, _SET_OPTIONS, _nothing)

ACTIONS = (
    Action("set", "write", {"path": PATH}, _SET_OPTIONS, set_),
    Action("delete", "write", {"path": PATH}, _OPTIONS, delete),
    Action(
        "delete_tree",
        "write",
        {"path": PATH},
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
