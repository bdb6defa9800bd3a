"""The server: an engine, the store that it fills, and the clients that are connected.

Made by `moat kv server` and by tests. Owns no socket: listeners are given to `serve`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.abc

from moat_kv import errors
from moat_kv.engine.base import Done, Engine
from moat_kv.entry import Record, Write
from moat_kv.proto import frames, messages
from moat_kv.server import (
    accepting,
    actions,
    estates,
    leases,
    lost_writes,
    network_facts,
    patching,
    presence,
    session,
    turns,
)
from moat_kv.server import times as times_module
from moat_kv.server.connection import Connection
from moat_kv.server.expiry import Expiry
from moat_kv.server.groups import Groups
from moat_kv.server.sessions import Sessions
from moat_kv.server.store import Store
from moat_kv.server.times import DEFAULT_TIMES, Times
from moat_kv.version import VERSION

logger = logging.getLogger(__name__)

#: How long a client that is not served may take to be told so, in seconds.
REFUSAL_S = 1.0


class Server:
    """One node of a network."""

    def __init__(
        self,
        node: str,
        engine: Engine,
        *,
        frame_limit: int = frames.LIMIT_DEFAULT,
        urls: Sequence[str] = (),
        times: Times = DEFAULT_TIMES,
    ) -> None:
        """`urls`: where clients find it, for others to know; `times`: those of a network.

        Raises BadConfig for times that do not go together.
        """
        if engine.shared:
            times_module.check(times)
        self.node = node
        self.engine = engine
        self.frame_limit = frame_limit  # bytes
        self.urls = urls
        self.times = times
        #: Tells this run of the server from all others.
        self.incarnation = secrets.token_hex(4)
        self.origin = f"{node}:{self.incarnation}"
        self.store = Store()
        self.groups = Groups()
        self.sessions = Sessions(self)
        self.sessions.on_end.append(self.groups.session_ended)
        self.leases = leases.Leases(self)
        self.estates = estates.Estates(self)
        self.presence = presence.Presence(self)
        if engine.shared:
            self.store.on_system = self._system_changed
            self.store.on_system_message[presence.TOPIC] = self.presence.heard
            self.groups.on_change = self.presence.changed
            engine.on_touch = self._touched
        self.expiry = Expiry(self)
        self.store.on_expiring = self.expiry.add
        self.store.on_restart = self._restarted
        self.patches = patching.Patches(self)
        self.lost_writes = lost_writes.LostWrites(self)
        self.servers = network_facts.Servers(self)
        self._turns = turns.Turns(self.submit, engine.inside_records)
        self.actions = actions.table()
        self.connections: set[Connection] = set()
        self.connection_limit = accepting.connection_limit()
        #: The engine takes no more writes.
        self.stopping = False
        self.started_at = time.time()
        self._tick = 0

    def next_tick(self) -> int:
        self._tick += 1
        return self._tick

    def now(self) -> float:
        """The engine's time, in seconds since 1970."""
        return self.engine.now()

    def submit(self, writes: Sequence[Write], done: Done) -> None:
        """Hand a group to the engine, see `Engine.submit`; Detached when the server is stopping."""
        if self.stopping:
            done(errors.Detached(patching.STOPPING))
        else:
            self.engine.submit(writes, done)

    def submit_in_turn(self, connection: Connection, writes: Sequence[Write], done: Done) -> None:
        """The same for a client's group: after what the client sent before, in turn with others."""
        self._turns.submit(connection, writes, done)

    def greeting(self) -> dict[str, Any]:
        return {
            "protocol": messages.PROTOCOL_VERSION,
            "version": VERSION,
            "node": self.node,
            "incarnation": self.incarnation,
            "epoch": self.engine.epoch,
            "revision": self.store.tree.revision,
            "floor": self.store.tree.floor,
            "login": [],
            "frame_limit": self.frame_limit,
        }

    async def serve(
        self,
        listeners: Sequence[anyio.abc.Listener[Any]],
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Open the engine and serve these listeners until cancelled.

        `task_status` is told when clients are being served. Raises what the engine raises when
        it cannot open its log; NameTaken when another live server of the network has the name.
        """
        async with self.engine.running(self.store):
            self.stopping = False
            # The last records may be gone (dropped deletions, or lost under relaxed syncing), but
            # clients have seen their revisions.
            self.store.tree.revision = max(self.store.tree.revision, self.engine.revision)
            try:
                await self.leases.begin()
                self.estates.begin_anew()
                self.sessions.recover()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self.leases.run)
                    tasks.start_soon(self.presence.run)
                    tasks.start_soon(self.estates.run)
                    tasks.start_soon(self.sessions.run)
                    tasks.start_soon(self.expiry.run)
                    tasks.start_soon(self.servers.run)
                    await accepting.accept_from(listeners, self._serve_client, tasks)
                    task_status.started()
            finally:
                self.presence.leave()
                await self.leases.release()
                # The engine finishes what it has; what its answers lead to must not reach it.
                self.stopping = True

    def _restarted(self) -> None:
        """The tree was taken anew. What clients have seen of it may have been another one."""
        logger.warning("the tree was taken anew; all clients begin anew")
        self.store.tree.revision = max(self.store.tree.revision, self.engine.revision)
        self.expiry.begin_anew()
        if self.engine.shared:
            self.leases.begin_anew()
            self.estates.begin_anew()
        for connection in list(self.connections):
            connection.break_off()

    def _system_changed(self, record: Record) -> None:
        """System data was written: by which server is told by where."""
        place = record.path[:2]
        if len(record.path) != 3:
            return
        if place == leases.PLACE:
            self.leases.applied(record)
        elif place == session.PLACE:
            self.estates.applied(record)

    def _touched(self) -> None:
        """The network is out of reach, or in reach again."""
        self.leases.touched()
        self.estates.touched()
        self.presence.touched()
        self.groups.tell_parted(self.leases.is_parted)

    async def _serve_client(self, stream: anyio.abc.ByteStream) -> None:
        async with stream:
            if len(self.connections) >= self.connection_limit:
                await self._refuse(stream)
            else:
                await self._serve_line(Connection(self, stream))

    async def _refuse(self, stream: anyio.abc.ByteStream) -> None:
        reason = f"the server has {self.connection_limit} connections, which is its limit"
        refusal = messages.error_fields(errors.ProtocolError(reason))
        with anyio.move_on_after(REFUSAL_S):
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await stream.send(messages.pack((0, messages.State.ERROR, refusal, None)))

    async def _serve_line(self, connection: Connection) -> None:
        self.connections.add(connection)
        try:
            await connection.run()
        except Exception:
            # A fault of ours in one client's service must not end the others'.
            logger.exception("connection %d (%s)", connection.number, connection.client_name)
        finally:
            self.connections.discard(connection)
            self.sessions.line_broken(connection)
            self.lost_writes.gone(connection)

    def describe(self) -> dict[str, Any]:
        """The facts of `moat kv status`."""
        tree = self.store.tree
        return {
            "node": self.node,
            "version": VERSION,
            "python": sys.version.split()[0],
            "pid": os.getpid(),
            "uptime_s": round(time.time() - self.started_at, 3),
            "epoch": self.engine.epoch,
            "revision": tree.revision,
            "floor": tree.floor,
            "entries": tree.entries,
            "connections": len(self.connections),
            "sessions": len(self.sessions),
            "watchers": self.store.watchers.count,
            "groups": self.groups.describe(),
            "memory_bytes": network_facts.memory_bytes(),
            "memory_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "trouble": self.engine.trouble,
            "engine": self.engine.describe(),
            "servers": self.servers.rows(),
        }
