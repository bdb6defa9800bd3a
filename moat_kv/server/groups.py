"""Groups: which names are present, and who wants to know.

A member joins with a session and leaves with it. Membership is never stored. One name may be in a
group with several roles (kinds of runner), each from one session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moat_kv import codec, errors
from moat_kv.path import Path


class _Group:
    __slots__ = ("members", "watchers")

    def __init__(self) -> None:
        # name -> role -> (session, packed info)
        self.members: dict[str, dict[str, tuple[str, bytes]]] = {}
        self.watchers: dict[Callable[[], None], None] = {}


class Groups:
    """All groups of a server that have a member or a watcher."""

    def __init__(self) -> None:
        self._groups: dict[Path, _Group] = {}

    def join(self, path: Path, name: str, role: str, session: str, info: bytes) -> None:
        """Be present until leaving, or until the session ends. Joining again changes the info.

        Raises NameTaken if another session is present under this name and role.
        """
        group = self._groups.setdefault(path, _Group())
        roles = group.members.setdefault(name, {})
        there = roles.get(role)
        if there is not None and there[0] != session:
            raise errors.NameTaken("member", name, group=str(path), role=role)
        roles[role] = (session, info)
        self._tell(group)

    def leave(self, path: Path, name: str, role: str, session_ids: set[str]) -> None:
        """Be absent, if one of these sessions is that member. Leaving twice is no error."""
        group = self._groups.get(path)
        there = group.members.get(name, {}).get(role) if group is not None else None
        if group is None or there is None or there[0] not in session_ids:
            return
        self._remove(group, name, role)
        self._tell(group)
        self._drop_if_empty(path, group)

    def session_ended(self, session: str) -> None:
        for path, group in list(self._groups.items()):
            gone = [
                (name, role)
                for name, roles in group.members.items()
                for role, (owner, _info) in roles.items()
                if owner == session
            ]
            for name, role in gone:
                self._remove(group, name, role)
            if gone:
                self._tell(group)
                self._drop_if_empty(path, group)

    @staticmethod
    def _remove(group: _Group, name: str, role: str) -> None:
        roles = group.members[name]
        del roles[role]
        if not roles:
            del group.members[name]

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
        infos = {
            name: codec.unpack(next(iter(roles.values()))[1]) for name, roles in members.items()
        }
        return fields, codec.pack(infos)

    def describe(self) -> dict[str, list[str]]:
        return {str(path): sorted(group.members) for path, group in self._groups.items()}
