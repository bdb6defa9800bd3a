"""Groups: which names are present, and who wants to know.

A member joins with a session and leaves with it. Membership is never stored. One name may be in a
group with several roles (kinds of runner), each from one session. Where several servers share the
tree, `presence` tells the members of the others; where two joined at the same time under one name,
the one that joined first stays, on all servers the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgpack

from moat_kv import codec, errors
from moat_kv.path import Path

#: What the members of one group may say of themselves, in bytes, so that it fits a frame.
GROUP_BYTES = 4 * 1024 * 1024
#: How many memberships one session may have.
SESSION_LIMIT = 1_000


class Member(NamedTuple):
    """Who is present under a name, with a role."""

    session: str
    info: bytes
    """Packed."""
    since: float = 0.0
    """When it joined, in the engine's time."""

    @property
    def rank(self) -> tuple[float, str]:
        """Of two under one name, the one with the lower rank stays."""
        return (self.since, self.session)


class Row(NamedTuple):
    """A membership, as servers tell each other."""

    group: Path
    name: str
    role: str
    member: Member


class _Group:
    __slots__ = ("elsewhere", "members", "size_bytes", "watchers")

    def __init__(self) -> None:
        self.size_bytes = 0
        # name -> role -> member
        self.members: dict[str, dict[str, Member]] = {}
        # server -> name -> role -> member
        self.elsewhere: dict[str, dict[str, dict[str, Member]]] = {}
        self.watchers: dict[Callable[[], None], None] = {}

    def first_elsewhere(self, name: str, role: str) -> Member | None:
        """The member of another server under that name that stays."""
        found = [there.get(name, {}).get(role) for there in self.elsewhere.values()]
        return min((each for each in found if each is not None), key=_rank, default=None)

    def seen(self) -> dict[str, dict[str, Member]]:
        """The members of all servers."""
        if not self.elsewhere:
            return self.members
        merged: dict[str, dict[str, Member]] = {}
        for there in (self.members, *self.elsewhere.values()):
            for name, roles in there.items():
                known = merged.setdefault(name, {})
                for role, member in roles.items():
                    known[role] = min(known.get(role, member), member, key=_rank)
        return merged


def _rank(member: Member) -> tuple[float, str]:
    return member.rank


class Groups:
    """All groups of a server that have a member or a watcher."""

    def __init__(self) -> None:
        self._groups: dict[Path, _Group] = {}
        # The memberships of each session: (group, name, role).
        self._joined: dict[str, set[tuple[Path, str, str]]] = {}
        # The groups in which another server has members.
        self._elsewhere: dict[str, set[Path]] = {}
        #: Called when this server's own members have changed.
        self.on_change: Callable[[], None] | None = None
        self._parted = False

    def join(
        self, path: Path, name: str, role: str, session: str, info: bytes, *, now: float = 0.0
    ) -> None:
        """Be present until leaving, or until the session ends. Joining again changes the info.

        `now`: the engine's time. Raises NameTaken if another session is present under this name
        and role.
        """
        group = self._groups.get(path) or _Group()
        there = group.members.get(name, {}).get(role)
        elsewhere = group.first_elsewhere(name, role)
        for known in (there, elsewhere):
            if known is not None and known.session != session:
                raise errors.NameTaken("member", name, group=str(path), role=role)
            if known is not None:
                now = known.since
        joined = self._joined.get(session, set())
        if there is None and len(joined) >= SESSION_LIMIT:
            reason = f"a session has at most {SESSION_LIMIT} memberships"
            raise errors.BadArguments("group_join", reason)
        size_bytes = group.size_bytes + _size(name, role, info)
        if there is not None:
            size_bytes -= _size(name, role, there.info)
        if size_bytes > GROUP_BYTES:
            raise errors.BadArguments("group_join", f"{path} has too many members")
        group.size_bytes = size_bytes
        self._groups[path] = group
        self._joined[session] = joined | {(path, name, role)}
        group.members.setdefault(name, {})[role] = Member(session, info, now)
        self._changed(group)

    def leave(self, path: Path, name: str, role: str, session_ids: set[str]) -> None:
        """Be absent, if one of these sessions is that member. Leaving twice is no error."""
        group = self._groups.get(path)
        there = group.members.get(name, {}).get(role) if group is not None else None
        if group is None or there is None or there.session not in session_ids:
            return
        joined = self._joined[there.session]
        joined.discard((path, name, role))
        if not joined:
            del self._joined[there.session]
        self._remove(path, name, role)

    def session_ended(self, session: str) -> None:
        """All its memberships end."""
        for path, name, role in self._joined.pop(session, ()):
            self._remove(path, name, role)

    def has_joined(self, session: str) -> bool:
        return session in self._joined

    def _remove(self, path: Path, name: str, role: str) -> None:
        group = self._groups[path]
        roles = group.members[name]
        member = roles.pop(role)
        group.size_bytes -= _size(name, role, member.info)
        if not roles:
            del group.members[name]
        self._changed(group)
        self._drop_if_empty(path, group)

    def _changed(self, group: _Group) -> None:
        self._tell(group)
        if self.on_change is not None:
            self.on_change()

    @staticmethod
    def _tell(group: _Group) -> None:
        for watcher in list(group.watchers):
            watcher()

    def _drop_if_empty(self, path: Path, group: _Group) -> None:
        if not group.members and not group.watchers and not group.elsewhere:
            self._groups.pop(path, None)

    # Other servers ------------------------------------------------------------------------------

    def own(self) -> Iterator[Row]:
        """This server's own members."""
        for path, group in self._groups.items():
            for name, roles in group.members.items():
                for role, member in roles.items():
                    yield Row(path, name, role, member)

    def told(self, server: str, rows: Iterable[Row]) -> set[str]:
        """These are the members of another server now.

        Returns the sessions of this one that have lost a name to them; it is taken from them.
        """
        news: dict[Path, dict[str, dict[str, Member]]] = {}
        for path, name, role, member in rows:
            news.setdefault(path, {}).setdefault(name, {})[role] = member
        before = self._elsewhere.pop(server, set())
        for path in before | set(news):
            group = self._groups.get(path) or _Group()
            self._groups[path] = group
            old, new = group.elsewhere.pop(server, None), news.get(path)
            if new is not None:
                group.elsewhere[server] = new
            if old != new:
                self._tell(group)
            self._drop_if_empty(path, group)
        if news:
            self._elsewhere[server] = set(news)
        return self._give_way(news)

    def _give_way(self, news: dict[Path, dict[str, dict[str, Member]]]) -> set[str]:
        losers: set[str] = set()
        for path, names in news.items():
            for name, roles in names.items():
                own = self._groups[path].members.get(name, {})
                for role, other in roles.items():
                    mine = own.get(role)
                    if mine is None or mine.session == other.session or mine.rank < other.rank:
                        continue
                    losers.add(mine.session)
                    self.leave(path, name, role, {mine.session})
        return losers

    # Reading ------------------------------------------------------------------------------------

    def watch(self, path: Path, changed: Callable[[], None]) -> Callable[[], None]:
        """Be told of changes; returns what ends that."""
        group = self._groups.setdefault(path, _Group())
        group.watchers[changed] = None

        def unwatch() -> None:
            group.watchers.pop(changed, None)
            self._drop_if_empty(path, group)

        return unwatch

    def state(self, path: Path) -> tuple[dict[str, Any], bytes | None]:
        """The members with their roles, and packed {name: info}; info is the first role's.

        `parted` is there if this server is on its own.
        """
        group = self._groups.get(path)
        members = group.seen() if group is not None else {}
        roles_of = {name: {"roles": sorted(roles)} for name, roles in members.items()}
        fields: dict[str, Any] = {"members": roles_of}
        if self._parted:
            fields["parted"] = True
        infos = [_packer.pack_map_header(len(members))]
        for name, roles in members.items():
            infos += (codec.pack(name), next(iter(roles.values())).info)
        return fields, b"".join(infos)

    def tell_parted(self, parted: bool) -> None:
        """Whether this server and its clients are on their own, see `Leases.is_parted`."""
        if parted != self._parted:
            self._parted = parted
            for group in list(self._groups.values()):
                self._tell(group)

    def describe(self) -> dict[str, list[str]]:
        return {str(path): sorted(group.seen()) for path, group in self._groups.items()}


_packer = msgpack.Packer(autoreset=True)


def _size(name: str, role: str, info: bytes) -> int:
    return 4 * (len(name) + len(role)) + len(info) + 32
