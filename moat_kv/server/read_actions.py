"""Actions that read: hello, ping, get, get_tree, list, watch, stop, history, hash, state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack

from moat_kv import codec, errors
from moat_kv.entry import Record
from moat_kv.path import Path, key_element
from moat_kv.proto import messages, rows
from moat_kv.proto.messages import Request
from moat_kv.server import hash_stream, streams
from moat_kv.server.actions import (
    BOOL,
    BYTES,
    INT,
    LIST,
    NUMBER,
    ONLY_PATH,
    TEXT,
    Action,
    readable,
)
from moat_kv.server.connection import Connection
from moat_kv.tree import hashing, match
from moat_kv.tree import tree as tree_module
from moat_kv.tree.node import Node
from moat_kv.tree.watch import PENDING_LIMIT, Watcher

#: How many changes may wait for all watchers of one line together, about.
LINE_PENDING = 400_000
#: How many records one history request may ask for, and how many are in memory at a time.
HISTORY_LIMIT = 10_000
HISTORY_SLICE = 16
#: How long a hash may wait for its revision, in seconds.
HASH_WAIT_LIMIT_S = 60.0
#: No engine counts further.
REVISION_LIMIT = 2**63 - 1


def hello(connection: Connection, request: Request) -> None:
    """Who the client is, and what it has seen: an answer never goes back behind that."""
    arguments = request.arguments
    server = connection.server
    connection.client_name = arguments.get("client", "")[:200]
    seen = arguments.get("seen", 0)
    if arguments.get("epoch") == server.engine.epoch and seen > server.store.tree.revision:
        raise errors.Behind(server.store.tree.revision, seen)
    connection.reply(request.seq, {})


def ping(connection: Connection, request: Request) -> None:
    server = connection.server
    connection.reply(request.seq, {"revision": server.store.tree.revision, "at": server.now()})


def get(connection: Connection, request: Request) -> None:
    path = readable(request.arguments["path"])
    if request.arguments.get("strict", False):
        _get_strictly(connection, request.seq, path)
    else:
        _answer_get(connection, request.seq, path)


def _get_strictly(connection: Connection, seq: int, path: Path) -> None:
    async def work() -> None:
        await connection.server.engine.catch_up()
        if connection.server.store.tree.is_covered(path):
            raise errors.Detached(f"a write of {path} waits to be brought in")
        _answer_get(connection, seq, path)

    connection.run_later(seq, work)


def _answer_get(connection: Connection, seq: int, path: Path) -> None:
    node = connection.server.store.tree.find(path)
    if node is None or node.value is None:
        connection.reply(seq, {"rev": 0})
        return
    connection.reply(seq, rows.facts(node), node.value)


def get_tree(connection: Connection, request: Request) -> None:
    path, min_depth, max_depth = _subtree(request)
    stream = streams.TreeStream(request.seq, connection.server.store, path, min_depth, max_depth)
    connection.open_stream(request.seq, stream)


def _subtree(request: Request) -> tuple[Path, int, int]:
    arguments = request.arguments
    min_depth, max_depth = arguments.get("min_depth", 0), arguments.get("max_depth", -1)
    if min_depth < 0 or max_depth < -1:
        raise errors.BadArguments(
            request.action, "depths count from 0; a max_depth of -1 is without limit"
        )
    return readable(arguments["path"]), min_depth, max_depth


def list_(connection: Connection, request: Request) -> None:
    """The names one level below a path, whether each has a value, and how many children."""
    path = readable(request.arguments["path"])
    node = connection.server.store.tree.find(path)
    connection.open_stream(request.seq, streams.RowStream(request.seq, _listed(path, node)))


def _listed(path: Path, node: Node | None) -> Iterator[bytes | None]:
    """The rows, and None for each node that was looked at for them."""
    children_by_key = node.children if node is not None else None
    if not children_by_key:
        return
    pack = msgpack.Packer(autoreset=True).pack
    for key in list(children_by_key):
        child = children_by_key.get(key)
        if child is None or (not path and key == tree_module.SYSTEM_KEY):
            continue
        children = 0
        for living in _look_at_children(child):
            children += living
            yield None
        if child.value is None and not children:
            continue
        name = Path(key_element(key)).packed
        extension = msgpack.ExtType(messages.PATH_EXTENSION, name)
        yield pack([extension, child.value is not None, children])


def _look_at_children(node: Node) -> Iterator[bool]:
    """True for each child that has something to show: a value, or children that have.

    False for what had to be looked at besides: a subtree of tombstones is searched.
    """
    for child in list(node.children.values()) if node.children is not None else ():
        nodes = [child]
        while nodes:
            one = nodes.pop()
            if one.value is not None:
                yield True
                break
            if one.children is not None:
                nodes.extend(one.children.values())
            yield False


def watch(connection: Connection, request: Request) -> None:
    """Changes from now on, or from a mark; with `fetch`, after the present state."""
    arguments = request.arguments
    path, min_depth, max_depth = _subtree(request)
    seq, store = request.seq, connection.server.store
    pattern = None
    if arguments.get("match", False):
        pattern, path = path, match.literal_prefix(path)
        min_depth, max_depth = 0, match.depth_limit(pattern)
    since, reset = _place_to_resume(connection, arguments.get("since"))
    watcher = Watcher(
        path,
        lambda: connection.stream_ready(seq),
        min_depth=min_depth,
        max_depth=max_depth,
        pattern=pattern,
        # Many on one line may have fewer each, for nobody knows whether any of them is read.
        limit=min(PENDING_LIMIT, LINE_PENDING // (1 + connection.stream_count)),
    )
    fetch = arguments.get("fetch", False)
    stream = streams.WatchStream(seq, store, watcher, fetch=fetch, since=since, reset=reset)
    if since is not None:
        _offer_again(connection, watcher, arguments.get("again", []))
    try:
        connection.open_stream(seq, stream)
    except errors.MoatKvError:
        stream.close()
        raise


def _offer_again(connection: Connection, watcher: Watcher, paths: list[Any]) -> None:
    """What these paths have now: another server has told of them what was pending there."""
    tree = connection.server.store.tree
    for path in paths:
        if type(path) is not Path or path[: len(watcher.base)] != watcher.base:
            raise errors.BadArguments("watch", "again is a list of paths that are watched")
        node = tree.find(path)
        if node is None or not node.rev:
            watcher.offer(Record(tree.revision, path, None, connection.server.now(), "", 0))
        elif watcher.wants(path):
            watcher.offer(Record(node.rev, path, node.value, node.at, node.origin, node.tick))


def _place_to_resume(
    connection: Connection, mark: list[Any] | None
) -> tuple[int | None, str | None]:
    """The revision to go on from, or why that cannot be."""
    if mark is None:
        return None, None
    if len(mark) != 2 or type(mark[0]) is not str or type(mark[1]) is not int:
        raise errors.BadArguments("watch", "since is [epoch, revision]")
    epoch: str = mark[0]
    revision: int = mark[1]
    server = connection.server
    if epoch != server.engine.epoch:
        return None, "another epoch"
    if revision < server.store.tree.floor:
        return None, "below the compaction floor"
    if revision > server.store.tree.revision:
        raise errors.Behind(server.store.tree.revision, revision)
    return revision, None


def stop(connection: Connection, request: Request) -> None:
    connection.stop_stream(request.arguments["seq"])
    connection.reply(request.seq, {})


def history(connection: Connection, request: Request) -> None:
    arguments = request.arguments
    path = readable(arguments["path"])
    limit = arguments.get("limit", 20)
    if not 1 <= limit <= HISTORY_LIMIT:
        raise errors.BadArguments("history", f"limit is from 1 to {HISTORY_LIMIT}")
    before = arguments.get("before")
    if before is not None and not 0 <= before <= REVISION_LIMIT:
        raise errors.BadArguments("history", "before is a revision")
    seq = request.seq
    stream = streams.FedStream(seq, lambda: connection.stream_ready(seq))
    connection.open_stream(seq, stream)

    async def read() -> None:
        try:
            await _feed_history(connection, stream, path, limit, before)
        except errors.MoatKvError as exc:
            stream.fail(exc)

    connection.run_later(seq, read)


async def _feed_history(
    connection: Connection, stream: streams.FedStream, path: Path, limit: int, before: int | None
) -> None:
    while not stream.closed:
        count = min(limit, HISTORY_SLICE)
        records = await connection.server.engine.history(path, limit=count, before=before)
        limit -= len(records)
        last = limit == 0 or len(records) < count
        stream.put([rows.pack_row(path.packed, record) for record in records], last=last)
        if last:
            return
        before = records[-1].rev
        await stream.taken()


def hash_(connection: Connection, request: Request) -> None:
    """The hash of a subtree, and those of its parts."""
    arguments = request.arguments
    path, rev = readable(arguments["path"]), arguments.get("rev", 0)
    prefix, wait_s = arguments.get("prefix", b""), arguments.get("wait_s", 0)
    if len(prefix) > hashing.PREFIX_LIMIT:
        raise errors.BadArguments("hash", f"prefix has at most {hashing.PREFIX_LIMIT} bytes")
    if not 0 <= rev <= REVISION_LIMIT or not 0 <= wait_s <= HASH_WAIT_LIMIT_S:
        raise errors.BadArguments("hash", f"rev is a revision, wait_s 0 to {HASH_WAIT_LIMIT_S:g}")
    seq, store = request.seq, connection.server.store
    snapshot = hashing.Snapshot(store.tree, path, prefix=prefix, rev=rev)
    stream = hash_stream.HashStream(seq, store, snapshot, lambda: connection.stream_ready(seq))
    connection.open_stream(seq, stream)
    if stream.waits:
        connection.run_later(seq, lambda: stream.wait(wait_s))


def state(connection: Connection, request: Request) -> None:
    connection.reply(request.seq, {}, codec.pack(connection.server.describe()))


_DEPTHS = {"min_depth": INT, "max_depth": INT}

ACTIONS = (
    Action("hello", "open", {}, {"client": TEXT, "seen": INT, "epoch": TEXT}, hello),
    Action("ping", "open", {}, {}, ping),
    Action("get", "read", ONLY_PATH, {"strict": BOOL}, get),
    Action("get_tree", "read", ONLY_PATH, _DEPTHS, get_tree),
    Action("list", "read", ONLY_PATH, {}, list_),
    Action(
        "watch",
        "read",
        ONLY_PATH,
        {**_DEPTHS, "fetch": BOOL, "match": BOOL, "since": LIST, "again": LIST},
        watch,
    ),
    Action("stop", "open", {"seq": INT}, {}, stop),
    Action("history", "read", ONLY_PATH, {"limit": INT, "before": INT}, history),
    Action("hash", "read", ONLY_PATH, {"prefix": BYTES, "rev": INT, "wait_s": NUMBER}, hash_),
    Action("state", "read", {}, {}, state),
)
