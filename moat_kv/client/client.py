"""The client as users see it; made by `opening.open_client`.

Everything here, in `reading` and in `writing` is thin: calls are turned into arguments (`writes`),
asked through the `link`, and their answers into `results`; what lasts longer is made from the
modules named for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio.abc

from moat_kv import codec
from moat_kv import config as config_module
from moat_kv.client import binding as binding_module
from moat_kv.client import groups, losses, reading, results, writes, writing
from moat_kv.client import monitor as monitor_module
from moat_kv.client import session as session_module
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.client.shared import Shared
    from moat_kv.proto import messages


class Client(reading.ReadCalls, writing.WriteCalls):
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
    def closed(self) -> bool:
        """Whether it is over: there will be no line any more."""
        return self._link.closed

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

    async def bind_line(self, fence: writes.Guard, token: str) -> None:
        """Have the server guard every write of this line, and of those to come, with a claim.

        `fence`: (path, revision) of the claim, `token`: what its value has under that name. What
        was bound once stays so. Raises StaleFence if the claim has passed on; then nothing can be
        written any more.
        """
        bound = binding_module.LineBinding(fence, token)
        self._link.restorers.append(bound)
        try:
            await bound.tell(self._link)
        except BaseException:  # cancelled, too: the next lines must not be bound behind our back
            self._link.restorers.remove(bound)
            raise

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

    # Writes that a server keeps while it is cut off ----------------------------------------------

    @property
    def kept_writes(self) -> int:
        """How many writes of this client were answered as pending."""
        return self.shared.losses.kept

    def conflicts(self) -> losses.Conflicts:
        """Those writes of this client that were pending and have lost against another one.

        `async with client.conflicts() as c: async for lost in c`; each is a `lost.LostWrite`.
        While nobody asks, each is a warning in the log.
        """
        return losses.Conflicts(self._link, self.shared.losses)

    # Sessions and groups ------------------------------------------------------------------------

    def session(
        self, *, ttl_s: float | None = None, grace_s: float | None = None
    ) -> session_module.Session:
        """Be known as alive: `async with client.session() as s`, then `set(..., session=s)`.

        `ttl_s`: how long the client may be silent, in seconds; `grace_s`: how long its line may be
        broken; None leaves them to the server (10 s and 2 s on a single one, 30 s and 10 s on a
        network).
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
        Raises NameTaken if another live session has that name and role there. If that turns out on
        a new line (the server was restarted, and another one was faster), the session is lost:
        `session.lost` tells whoever acts under that name.
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
