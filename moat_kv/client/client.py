"""The client as users see it; made by `opening.open_client`.

Everything here is thin: calls are turned into arguments (`writes`), asked through the `link`, and
their answers into `results`; what lasts longer is made from the modules named for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import anyio.abc

from moat_kv import codec
from moat_kv import config as config_module
from moat_kv.client import groups, results, streams, writes
from moat_kv.client import mirror as mirror_module
from moat_kv.client import monitor as monitor_module
from moat_kv.client import session as session_module
from moat_kv.client import watch as watch_module
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.client.shared import Shared
    from moat_kv.proto import messages

_R = TypeVar("_R", bound=mirror_module.ClientRoot)
# Inside the class `list` is a method.
Results: TypeAlias = "list[results.Result]"


class Client:
    """A connection to a network of servers. Made by `open_client`.

    Any number of tasks may use it at the same time. Every method that asks the server may raise:

    - Disconnected: a write, because the line is or was broken before it left; a read, because there
      is no line within the time limit. Nothing has happened.
    - Unknown: a write, because the line broke, or the time ran out, after it had left.
    - RequestTimeout: a read that was not answered in time.
    - BadPath, BadValue, FrameTooLarge, BadArguments: it cannot be asked so.

    A read is repeated by itself on another line. Paths are `Path`s; a text is a TypeError.
    """

    def __init__(self, shared: Shared, binding: writes.Binding = writes.UNBOUND) -> None:
        self.shared = shared
        self.binding = binding
        self._link = shared.link

    # About --------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What this client calls itself to servers."""
        return self._link.name

    @property
    def config(self) -> config_module.Config:
        return self.shared.config

    @property
    def server(self) -> results.ServerInfo:
        """The server of the present line, or of the last one."""
        return self._link.server

    @property
    def connected(self) -> bool:
        """Whether there is a line at present."""
        return self._link.connected

    @property
    def task_group(self) -> anyio.abc.TaskGroup:
        """For tasks that live as long as the client; they are cancelled before the line goes."""
        return self.shared.task_group

    def add_connection_listener(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Be told of each new line (True) and each break (False). Returns what ends that.

        The callback runs in the event loop and must not block.
        """
        self._link.listeners.append(callback)

        def remove() -> None:
            if callback in self._link.listeners:
                self._link.listeners.remove(callback)

        return remove

    def bound(
        self, *, fence: writes.Guard | None = None, session: writes.SessionLike | None = None
    ) -> Client:
        """A view of the same connection whose every write carries this fence or session.

        `fence`: (path, revision) of a claim; when it has passed on, writes raise StaleFence.
        """
        old = self.binding
        new = writes.Binding(
            fence=old.fence if fence is None else fence,
            session=old.session if session is None else session,
        )
        return Client(self.shared, new)

    # Reading ------------------------------------------------------------------------------------

    async def get(self, path: Path, *, strict: bool = False) -> results.Result:
        """One entry. Where there is none, the result has no `value` and its `rev` is 0.

        `strict`: only from a server that is in touch with its engine, else Detached.
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
        result = results.Result(rev, link_.server.epoch)
        if rev:
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
        arguments = _subtree(path, min_depth, max_depth)
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
        return mirror_module.mirrored(self, path, cls or mirror_module.ClientRoot)

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

    # Writing ------------------------------------------------------------------------------------

    async def set(
        self,
        path: Path,
        value: Any,
        *,
        chain: writes.ChainLike = NotGiven,
        expect: int | None = None,
        idem: bool = False,
        guard: writes.Guard | None = None,
        fence: writes.Guard | None = None,
        session: writes.SessionLike | None = None,
        ttl_s: float | None = None,
        strict: bool = False,
    ) -> results.Result:
        """Write one entry; returns when that is durable. The result has `rev`, `at`, `id`, `chain`.

        `expect`: the revision that the entry must have, 0: it must not exist (else Conflict).
        `chain`: the same, with the token of an earlier result; None: it must not exist.
        `idem`: no new revision if the value is the same. `guard`: (path, rev), only while that
        other entry has that revision (else GuardFailed). `session`: delete the entry when the
        session ends (SessionExpired if it has). `ttl_s`: delete it after so many seconds.
        `strict`: only with the agreement of the network (else Detached).
        """
        if type(path) is not Path:
            writes.check_path(path)
        link_ = self._link
        arguments = writes.options_of(
            path,
            link_.server.epoch,
            self.binding,
            chain=chain,
            expect=expect,
            idem=idem,
            guard=guard,
            fence=fence,
            session=session,
            ttl_s=ttl_s,
            strict=strict,
        )
        arguments["path"] = path
        reply = await link_.call("set", arguments, writes.packed(value))
        return self._written(reply)

    async def delete(
        self,
        path: Path,
        *,
        chain: writes.ChainLike = NotGiven,
        expect: int | None = None,
        guard: writes.Guard | None = None,
        fence: writes.Guard | None = None,
        session: writes.SessionLike | None = None,
        strict: bool = False,
    ) -> results.Result:
        """Delete one entry; its children stay. Options as for `set`.

        The result's `rev` is that of the deletion; 0 if there has never been anything.
        """
        writes.check_path(path)
        arguments = writes.options_of(
            path,
            self._link.server.epoch,
            self.binding,
            chain=chain,
            expect=expect,
            guard=guard,
            fence=fence,
            session=session,
            strict=strict,
        )
        arguments["path"] = path
        return self._written(await self._link.call("delete", arguments), deleted=True)

    def _written(self, reply: messages.Reply, *, deleted: bool = False) -> results.Result:
        link_ = self._link
        result = results.result_of(
            reply.fields, reply.value, None if deleted else link_.server.epoch
        )
        if result.rev > link_.seen:
            link_.seen = result.rev
        return result

    async def delete_tree(self, path: Path, *, min_depth: int = 0, max_depth: int = -1) -> int:
        """Delete all entries at and below a path that are there now; returns how many.

        Up to 1,000 at once, all or nothing; more in several such groups.
        """
        arguments = _subtree(path, min_depth, max_depth)
        if self.binding.fence is not None:
            arguments["fence"] = list(self.binding.fence)
        reply = await self._link.call("delete_tree", arguments)
        self._link.saw(reply.fields["rev"])
        count: int = reply.fields["count"]
        return count

    def op_set(self, path: Path, value: Any, **options: Any) -> writes.WriteOp:
        """A write for `batch`. Options as for `set`."""
        writes.check_path(path)
        made = writes.options_of(path, self._link.server.epoch, self.binding, **options)
        return writes.WriteOp(path=path, value=writes.packed(value), options=made)

    def op_delete(self, path: Path, **options: Any) -> writes.WriteOp:
        """A deletion for `batch`. Options as for `delete`."""
        writes.check_path(path)
        made = writes.options_of(path, self._link.server.epoch, self.binding, **options)
        return writes.WriteOp(path=path, value=None, options=made)

    async def batch(self, ops: Sequence[writes.WriteOp]) -> Results:
        """Several writes, all or nothing, each path once; results in the same order.

        Raises BatchTooLarge above 1,000, and what refuses any one of them.
        """
        arguments = {"writes": [[op.path, op.value, op.options] for op in ops]}
        reply = await self._link.call("batch", arguments)
        epoch = self._link.server.epoch
        written = []
        for op, (rev, at, id_) in zip(ops, reply.fields["rows"], strict=True):
            result = results.Result(rev, epoch if op.value is not None else None)
            result.path, result.at, result.id = op.path, at, id_
            self._link.saw(rev)
            written.append(result)
        return written

    async def patch(
        self,
        path: Path,
        op: str,
        operand: Any,
        *,
        fence: writes.Guard | None = None,
        session: writes.SessionLike | None = None,
    ) -> results.Result:
        """Have the server compute a new value from the present one; the result has it.

        `op`: `add` a number, `append` to a list, `union` into a list as a set, `merge` a mapping.
        Raises CannotPatch if the present value is of another type.
        """
        writes.check_path(path)
        arguments = writes.options_of(
            path, self._link.server.epoch, self.binding, fence=fence, session=session
        )
        arguments |= {"path": path, "op": op}
        return self._written(await self._link.call("patch", arguments, writes.packed(operand)))

    # Messages that are not stored ---------------------------------------------------------------

    async def send(self, topic: Path, value: Any = NotGiven, *, raw: bytes | None = None) -> None:
        """Broadcast a message to whoever monitors the topic now: a value, or raw bytes."""
        writes.check_path(topic)
        if (value is NotGiven) == (raw is None):
            raise TypeError("send takes a value or raw bytes")
        content = value if raw is None else bytes(raw)
        await self._link.call("send", {"topic": topic}, writes.packed(content))

    def monitor(
        self, topic: Path, *, raw: bool = False, max_depth: int = -1
    ) -> monitor_module.Monitor:
        """Messages at and below a topic: `async with client.monitor(t) as m: async for msg in m`.

        `msg.topic`, and `msg.value`, or with `raw` the bytes, `msg.raw`.
        """
        writes.check_path(topic)
        return monitor_module.Monitor(self._link, topic, raw=raw, max_depth=max_depth)

    # Sessions and groups ------------------------------------------------------------------------

    def session(
        self, *, ttl_s: float | None = None, grace_s: float | None = None
    ) -> session_module.Session:
        """Be known as alive: `async with client.session() as s`, then `set(..., session=s)`.

        `ttl_s`: how long the client may be silent, in seconds; `grace_s`: how long its line may be
        broken; None leaves them to the server (10 s and 2 s on a single one).
        """
        return session_module.Session(
            self._link, self.shared.sessions, ttl_s=ttl_s, grace_s=grace_s
        )

    async def join(
        self,
        group: Path,
        name: str,
        *,
        session: writes.SessionLike,
        info: Any = None,
        role: str = "member",
    ) -> None:
        """Be a member of a group until leaving, or until the session ends; also on new lines.

        `info`: any value, seen by those who watch the group. Joining again changes it.
        Raises NameTaken if another live session has that name and role there.
        """
        writes.check_path(group)
        id_ = writes.session_id(session)
        await self.shared.joins.join(group, name, role, id_, codec.pack(info))

    async def leave(self, group: Path, name: str, role: str = "member") -> None:
        """Be a member no more. Leaving twice is no error."""
        writes.check_path(group)
        await self.shared.joins.leave(group, name, role)

    def watch_group(self, group: Path) -> groups.GroupWatch:
        """The members of a group: `async with client.watch_group(p) as g: async for m in g`.

        Each `m` maps names to `MemberInfo(roles, info)`; None: the line is broken.
        """
        writes.check_path(group)
        return groups.GroupWatch(self._link, group)

    # Anything else ------------------------------------------------------------------------------

    async def request(
        self,
        action: str,
        arguments: dict[str, Any],
        value: bytes | None = None,
        *,
        repeat: bool = False,
    ) -> messages.Reply:
        """Any action that has one answer, as it travels; `value` is packed.

        `repeat`: it only reads, so it may be asked again on another line.
        """
        return await self._link.call(action, arguments, value, repeat=repeat)


def _subtree(path: Path, min_depth: int, max_depth: int) -> dict[str, Any]:
    writes.check_path(path)
    arguments: dict[str, Any] = {"path": path}
    if min_depth:
        arguments["min_depth"] = min_depth
    if max_depth != -1:
        arguments["max_depth"] = max_depth
    return arguments
