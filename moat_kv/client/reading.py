"""The calls of a client that only read; the base of `client.Client`, which see.

Each is repeated by itself on another line, or goes on there.
"""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast, overload

from moat_kv import codec
from moat_kv.client import hashes, results, streams, writes
from moat_kv.client import mirror as mirror_module
from moat_kv.client import watch as watch_module
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.client.client import Client
    from moat_kv.client.link import Link

_R = TypeVar("_R", bound=mirror_module.ClientRoot)
# Inside the classes of calls `list` is a method.
Results: TypeAlias = "list[results.Result]"


class ReadCalls:
    """Reading entries and following them."""

    _link: Link

    async def get(self, path: Path, *, strict: bool = False) -> results.Result:
        """One entry. Where there is none, the result has no `value` and its `rev` is 0.

        `strict`: as it is in the whole network, with every write that was answered anywhere before
        this call; Detached if the server cannot know.
        """
        if type(path) is not Path:
            writes.check_path(path)
        arguments: dict[str, Any] = {"path": path}
        if strict:
            arguments["strict"] = True
        link_ = self._link
        reply = await link_.call("get", arguments, None, repeat=True)
        fields = reply.fields
        rev = fields["rev"]
        if rev > link_.seen:
            link_.seen = rev
        result = results.Result(rev, link_.server.epoch, pending="pending" in fields)
        if "at" in fields:
            result.at = fields["at"]
            result.id = fields["id"]
        if reply.value is not None:
            result.value = codec.unpack(reply.value)
        return result

    def get_tree(
        self, path: Path, *, min_depth: int = 0, max_depth: int = -1
    ) -> streams.Rows[results.Result]:
        """All entries with a value at and below a path: `async for row in client.get_tree(p)`.

        `row.path` is relative, a parent comes before its children. `min_depth` and `max_depth`
        count from the path; -1 is without limit. The rows are no snapshot: what changes while they
        come may show either way. Leaving the loop stops the server.

        Raises Disconnected if the line breaks after the first rows were taken.
        """
        arguments = subtree(path, min_depth, max_depth)
        epoch = self._link.server.epoch
        answer = streams.Answer(self._link, "get_tree", arguments)
        return streams.Rows(answer, self._link, lambda row: results.row_of(row, epoch))

    async def list(self, path: Path) -> list[results.Listed]:
        """The children of a path: names, whether each has a value, how many children it has."""
        writes.check_path(path)
        rows = await streams.all_rows(self._link, "list", {"path": path})
        return [
            results.Listed(name=name[0], has_value=has_value, children=children)
            for name, has_value, children in rows
        ]

    async def history(self, path: Path, *, limit: int = 20, before: int | None = None) -> Results:
        """Earlier states of one entry that are still kept, newest first, at most `limit` (1 up).

        A deletion has no value. `before`: only those of lower revisions.
        """
        writes.check_path(path)
        arguments: dict[str, Any] = {"path": path, "limit": limit}
        if before is not None:
            arguments["before"] = before
        rows = await streams.all_rows(self._link, "history", arguments)
        return [results.row_of(row, self._link.server.epoch) for row in rows]

    async def hash(
        self, path: Path, *, prefix: bytes = b"", rev: int = 0, wait_s: float = 0.0
    ) -> hashes.SubtreeHash:
        """The hash of all at and below a path, and of its children, as of one revision.

        `rev`: wait for this revision, `wait_s` seconds (0 to 60) at most; the answer's `rev` says
        what it is of. `prefix`: only children in these buckets, see `SubtreeHash.buckets`.
        `moat_kv.client.comparing` compares servers with it.
        """
        writes.check_path(path)
        arguments: dict[str, Any] = {"path": path}
        if prefix:
            arguments["prefix"] = prefix
        if rev:
            arguments |= {"rev": rev, "wait_s": wait_s}
        return await hashes.ask(self._link, path, arguments)

    def watch(
        self,
        path: Path,
        *,
        fetch: bool = False,
        min_depth: int = 0,
        max_depth: int = -1,
        match: bool = False,
        since: results.Mark | tuple[str, int] | None = None,
        marks: bool = False,
    ) -> watch_module.Watch:
        """Changes at and below a path: `async with client.watch(p) as w: async for event in w`.

        `fetch`: first the present state, then `Ready`. `match`: the path is a pattern, where `+` is
        any one element and `#` any number. `since`: all that was missed since that mark (`w.since`
        of an earlier watch). `marks`: hand out `Mark`s too. It goes on over breaks of the line;
        where changes may have been missed there is a `Reset`, the present state, and `Ready`.
        """
        writes.check_path(path)
        return watch_module.Watch(
            self._link,
            path,
            marks=marks,
            fetch=fetch,
            min_depth=min_depth,
            max_depth=max_depth,
            match=match,
            since=watch_module.mark_of(since),
        )

    @overload
    def mirror(self, path: Path) -> AbstractAsyncContextManager[mirror_module.ClientRoot]: ...
    @overload
    def mirror(self, path: Path, cls: type[_R]) -> AbstractAsyncContextManager[_R]: ...
    def mirror(self, path: Path, cls: type[Any] | None = None) -> Any:
        """A local copy of a subtree, always current: `async with client.mirror(p) as root`.

        `cls`: a subclass of `ClientRoot`. On entry the copy is complete.
        """
        writes.check_path(path)
        return mirror_module.mirrored(cast("Client", self), path, cls or mirror_module.ClientRoot)

    async def state(self) -> dict[str, Any]:
        """Facts about the server, for people: names, revision, counts, engine."""
        reply = await self._link.call("state", {}, repeat=True)
        facts: dict[str, Any] = codec.unpack(reply.value) if reply.value is not None else {}
        return facts

    async def ping(self) -> float:
        """The time of one round trip, in seconds."""
        began = time.perf_counter()
        reply = await self._link.call("ping", {}, repeat=True)
        self._link.saw(reply.fields["revision"])
        return time.perf_counter() - began


def subtree(path: Path, min_depth: int, max_depth: int) -> dict[str, Any]:
    """The arguments of a call on a subtree."""
    writes.check_path(path)
    arguments: dict[str, Any] = {"path": path}
    if min_depth:
        arguments["min_depth"] = min_depth
    if max_depth != -1:
        arguments["max_depth"] = max_depth
    return arguments
