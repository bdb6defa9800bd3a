"""Groups: being a member, over breaks of the line, and seeing who is.

`Joins` repeats a client's memberships on each new line, after its sessions. A `GroupWatch` holds
only the newest list of members: a slow reader misses what was in between, and nothing grows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from moat_kv import codec, errors
from moat_kv.client import connection, results, subscription
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.client.link import Link
    from moat_kv.client.session import Sessions


class _Member(NamedTuple):
    group: Path
    name: str
    role: str


class Joins:
    """The memberships of a client."""

    def __init__(self, link: Link, sessions: Sessions) -> None:
        self._link = link
        self._sessions = sessions
        # With each member its session and its packed info.
        self._joined: dict[_Member, tuple[str, bytes]] = {}

    async def join(self, group: Path, name: str, role: str, session: str, info: bytes) -> None:
        """Join now, and again on each new line while the session lives. Raises NameTaken."""
        member = _Member(group, name, role)
        await self._link.call("group_join", _arguments(member, session), info)
        self._joined[member] = (session, info)

    async def leave(self, group: Path, name: str, role: str) -> None:
        member = _Member(group, name, role)
        self._joined.pop(member, None)
        await self._link.call("group_leave", {"group": group, "name": name, "role": role})

    async def restore(self, line: connection.Connection) -> None:
        for member, (session, info) in list(self._joined.items()):
            if not self._sessions.is_live(session):
                del self._joined[member]
                continue
            try:
                await line.call("group_join", _arguments(member, session), info)
            except errors.MoatKvError as exc:
                # Nobody waits for this call who could be told: the session tells, by being lost.
                self._sessions.lose(
                    session, f"it cannot be {member.name} in group {member.group} again: {exc}"
                )
                del self._joined[member]

    def interrupted(self) -> None:
        """Nothing to do until there is a line."""


def _arguments(member: _Member, session: str) -> dict[str, Any]:
    return {**member._asdict(), "session": session}


class GroupWatch(subscription.Subscription[results.Members | None]):
    """`async with client.watch_group(group) as g: async for members in g`.

    Gives `Members` at once and after each change, and None when the line breaks: nothing is known
    of the group then, until the next `Members`.
    """

    action = "group_watch"

    def __init__(self, link: Link, group: Path) -> None:
        super().__init__(link)
        self._group = group
        # At most one.
        self._newest: list[results.Members | None] = []

    def waiting(self) -> bool:
        return bool(self._newest)

    def take(self) -> results.Members | None:
        return self._newest.pop()

    def ask(self) -> dict[str, Any]:
        return {"group": self._group}

    def item(self, fields: dict[str, Any], value: bytes | None) -> None:
        infos = codec.unpack(value) if value is not None else {}
        members = results.Members()
        members.parted = bool(fields.get("parted"))
        for name, facts in fields["members"].items():
            roles = tuple(sorted(facts["roles"]))
            members[name] = results.MemberInfo(roles=roles, info=infos.get(name))
        self._newest[:] = [members]
        self.changed()

    def interrupted(self, reason: str) -> None:
        self._newest[:] = [None]
        self.changed()
