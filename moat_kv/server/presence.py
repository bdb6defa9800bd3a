"""Presence: what the servers of a network tell each other of their members.

Fleeting messages, which no user's monitor hears. Every second a server tells that it is there, and
which state of its members is the present one; after each change, and when another server asks, it
tells all of them, in parts that fit a message. One that is silent, or whose lease is over, has no
members any more; while this server is cut off, none of the others has. Nothing is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio

from moat_kv import codec
from moat_kv.entry import SYSTEM
from moat_kv.path import Path
from moat_kv.server import groups

if TYPE_CHECKING:
    from moat_kv.server.server import Server

logger = logging.getLogger(__name__)

TOPIC = Path(SYSTEM, "presence")

#: What one message holds, in bytes; NATS takes 1 MiB unless told otherwise.
PART_BYTES = 256 * 1024
#: What a member counts for beside its info, in bytes.
ROW_BYTES = 128
#: Changes are gathered for so long before they are told, in seconds.
GATHER_S = 0.02
#: A round that comes later than this was held up, in seconds; so were the others' messages.
HELD_UP_S = 0.5


class _Peer:
    """Another server, as it told."""

    __slots__ = ("coming", "heard_at", "parts", "version")

    def __init__(self) -> None:
        self.heard_at = anyio.current_time()
        #: Of the members that are shown, and of those that come; -1: none yet.
        self.version = self.coming = -1
        self.parts: dict[int, list[groups.Row]] = {}


class Presence:
    """Tells this server's members, and hears the others'."""

    def __init__(self, server: Server) -> None:
        self._server = server
        #: The other servers that are there, by `node:incarnation`.
        self.peers: dict[str, _Peer] = {}
        self._version = 0
        self._told = -1
        self._wake = anyio.Event()

    def changed(self) -> None:
        """This server's members have."""
        self._version += 1
        self._wake.set()

    def touched(self) -> None:
        """The network is out of reach, or in reach again."""
        if not self._server.engine.attached:
            for owner in list(self.peers):
                self._forget(owner)
        else:
            self._told = -1
        self._wake.set()

    async def run(self) -> None:
        """Tell, for as long as the server lives."""
        engine, times = self._server.engine, self._server.times
        if not engine.shared:
            return
        self._send({"ask": ""})
        while True:
            if engine.attached and self._told != self._version:
                self._tell_all()
            elif engine.attached:
                self._send({"of": self._server.origin, "version": self._version})
            began = anyio.current_time()
            with anyio.move_on_after(times.presence_s):
                await self._wake.wait()
                await anyio.sleep(GATHER_S)
            self._wake = anyio.Event()
            late_s = anyio.current_time() - began - times.presence_s
            if late_s > HELD_UP_S:
                for peer in self.peers.values():
                    peer.heard_at += late_s
            self._forget_silent()

    def leave(self) -> None:
        """Tell that this server ends."""
        if self._server.engine.shared and self._server.engine.attached:
            self._send({"of": self._server.origin, "gone": True})

    def _send(self, message: dict[str, Any]) -> None:
        self._server.engine.send(TOPIC, codec.pack(message))

    def _tell_all(self) -> None:
        self._told = self._version
        parts: list[list[Any]] = [[]]
        size_bytes = 0
        for path, name, role, (session, info, since) in self._server.groups.own():
            row_bytes = len(info) + len(path.packed) + 4 * (len(name) + len(role)) + ROW_BYTES
            if parts[-1] and size_bytes + row_bytes > PART_BYTES:
                parts.append([])
                size_bytes = 0
            parts[-1].append([path, name, role, session, info, since])
            size_bytes += row_bytes
        for number, rows in enumerate(parts):
            self._send(
                {
                    "of": self._server.origin,
                    "version": self._version,
                    "part": number,
                    "parts": len(parts),
                    "members": rows,
                }
            )

    # The others ---------------------------------------------------------------------------------

    def heard(self, data: bytes) -> None:
        """A message of a server, perhaps of this one."""
        if not self._server.engine.attached:
            return
        message = codec.unpack(data)
        if "ask" in message:
            if message["ask"] in ("", self._server.origin):
                self._told = -1
                self._wake.set()
            return
        owner = message["of"]
        if owner == self._server.origin:
            return
        if message.get("gone"):
            self._forget(owner)
            return
        peer = self.peers.get(owner)
        if peer is None:
            # Only one run of a server can be there.
            for other in list(self.peers):
                if other.rpartition(":")[0] == owner.rpartition(":")[0]:
                    self._forget(other)
            peer = self.peers[owner] = _Peer()
        peer.heard_at = anyio.current_time()
        if "members" in message:
            self._take(owner, peer, message)
        elif message["version"] != peer.version:
            self._send({"ask": owner})

    def _take(self, owner: str, peer: _Peer, message: dict[str, Any]) -> None:
        if message["part"] == 0 or message["version"] != peer.coming:
            peer.parts.clear()
            peer.coming = message["version"]
        peer.parts[message["part"]] = [_row(each) for each in message["members"]]
        if len(peer.parts) < message["parts"]:
            return
        rows = [row for _number, part in sorted(peer.parts.items()) for row in part]
        peer.parts.clear()
        peer.version = message["version"]
        self._show(owner, rows)

    def _show(self, owner: str, rows: Sequence[groups.Row]) -> None:
        for session in self._server.groups.told(owner, rows):
            self._server.sessions.lost_name(session)

    def _forget(self, owner: str) -> None:
        if self.peers.pop(owner, None) is not None:
            self._show(owner, ())

    def _forget_silent(self) -> None:
        now, silent_s = anyio.current_time(), self._server.times.silent_s
        for owner, peer in list(self.peers.items()):
            if now - peer.heard_at >= silent_s or self._server.leases.is_known_over(owner):
                logger.info("server %s is silent; its members are not seen any more", owner)
                self._forget(owner)


def _row(told: Sequence[Any]) -> groups.Row:
    path, name, role, session, info, since = told
    return groups.Row(path, name, role, groups.Member(session, info, since))
