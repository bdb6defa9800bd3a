"""Groups: which names are present, and who wants to know.

A member joins with a session and leaves with it. Membership is never stored. One name may be in a
group with several roles (kinds of runner), each from one session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from moat_kv import codec, errors
from moat_kv.path import Path

#: What the members of one group may say of themselves, in bytes, so that it fits a frame.
GROUP_BYTES = 4 * 1024 * 1024
#: How many memberships one session may have.
SESSION_LIMIT = 1_000


class _Group:
    __slots__ = ("members", "size_bytes", "watchers")

    def __init__(self) -> None:
        self.size_bytes = 0
        # name -> role -> (session, packed info)
        self.members: dict[str, dict[str, tuple[str, bytes]]] = {}
        self.watchers: dict[Callable[[], None], None] = {}


class Groups:
    """All groups of a server that have a member or a watcher."""

    def __init__(self) -> None:
        self._groups: dict[Path, _Group] = {}
        # The memberships of each session: (group, name, role).
        self._joined: dict[str, set[tuple[Path, str, str]]] = {}

    def join(self, path: Path, name: str, role: str, session: str, info: bytes) -> None:
        """Be present until leaving, or until the session ends. Joining again changes the info.

        Raises NameTaken if another session is present under this name and role.
        """
        group = self._groups.get(path) or _Group()
        there = group.members.get(name, {}).get(role)
        if there is not None and there[0] != session:
            raise errors.NameTaken("member", name, group=str(path), role=role)
        joined = self._joined.get(session, set())
        if there is None and len(joined) >= SESSION_LIMIT:
            reason = f"a session has at most {SESSION_LIMIT} memberships"
            raise errors.BadArguments("group_join", reason)
        size_bytes = group.size_bytes + _size(name, role, info)
        if there is not None:
            size_bytes -= _size(name, role, there[1])
        if size_bytes > GROUP_BYTES:
            raise errors.BadArguments("group_join", f"{path} has too many members")
        group.size_bytes = size_bytes
        self._groups[path] = group
        self._joined[session] = joined | {(path, name, role)}
        group.members.setdefault(name, {})[role] = (session, info)
        self._tell(group)

    def leave(self, path: Path, name: str, role: str, session_ids: set[str]) -> None:
        """Be absent, if one of these sessions is that member. Leaving twice is no error."""
        group = self._groups.get(path)
        there = group.members.get(name, {}).get(role) if group is not None else None
        if group is None or there is None or there[0] not in session_ids:
            return
        joined = self._joined[there[0]]
        joined.discard((path, name, role))
        if not joined:
            del self._joined[there[0]]
        self._remove(path, name, role)

    def session_ended(self, session: str) -> None:
        """All its memberships end."""
        for path, name, role in self._joined.pop(session, ()):
            self._remove(path, name, role)

    def _remove(self, path: Path, name: str, role: str) -> None:
        group = self._groups[path]
        roles = group.members[name]
        _session, info = roles.pop(role)
        group.size_bytes -= _size(name, role, info)
        if not roles:
            del group.members[name]
        self._tell(group)
        self._drop_if_empty(path, group)

    @staticmethod
    def _tell(group: _Group) -> None:
        for watcher in list(group.watchers):
            watcher()

    def _drop_if_empty(self, path: Path, group: _Group) -> None:
        if not group.members and not group.watchers:
            self._groups.pop(path, None)

    def watch(self, path: Path, changed: Callable[[], None]) -> Callable[[], None]:
        """Be told of changes; returns what ends that."""
        group = self._groups.setdefault(path, _Group())
        group.watchers[changed] = None

        def unwatch() -> None:
            group.watchers.pop(changed, None)
            self._drop_if_empty(path, group)

        return unwatch

    def state(self, path: Path) -> tuple[dict[str, Any], bytes | None]:
        """The members with their roles, and packed {name: info}; info is the first role's."""
        group = self._groups.get(path)
        members = group.members if group is not None else {}
        fields = {"members": {name: {"roles": sorted(roles)} for name, roles in members.items()}}
        infos = [_packer.pack_map_header(len(members))]
        for name, roles in members.items():
            _session, info = next(iter(roles.values()))
            infos += (codec.pack(name), info)
        return fields, b"".join(infos)

    def describe(self) -> dict[str, list[str]]:
        return {str(path): sorted(group.members) for path, group in self._groups.items()}


_packer = msgpack.Packer(autoreset=True)


def _size(name: str, role: str, info: bytes) -> int:
    return 4 * (len(name) + len(role)) + len(info) + 32
