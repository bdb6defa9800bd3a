"""The ground that a script is tried out on: a server in this process, its tree in memory.

A script's line to it is watched (`line`); a desk's is for whoever prepares and looks. With a client
of a real server, what is not faked comes from there.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.abc

from moat_kv.client import address, opening
from moat_kv.client.client import Client
from moat_kv.config import Config
from moat_kv.engine.memory import MemoryEngine
from moat_kv.path import Path
from moat_kv.server.server import Server
from moat_kv_runner.trying import behind
from moat_kv_runner.trying import line as line_module


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What `running_ground` gives."""

    desk: Client
    """A line of its own; what is done on it is not told."""
    tasks: anyio.abc.TaskGroup
    """Ends with the ground."""
    where: Sequence[address.Address]
    source: behind.Behind | None

    def line(self, tell: line_module.Tell) -> AbstractAsyncContextManager[Client]:
        """A line for a script, closed with the context; `tell` gets what is written on it."""
        watched = line_module.TrialLink(self.where, tell=tell, source=self.source)
        return opening.opened(watched, Config())


@asynccontextmanager
async def running_ground(
    *,
    real: Client | None = None,
    faked: Collection[Path] = (),
    lets_through: bool = False,
    engine: MemoryEngine | None = None,
) -> AsyncIterator[Ground]:
    """A ground, until the context ends.

    `real`: a client of the server from which all but `faked` comes; `lets_through`: what a script
    writes is written there as well.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="moat-try-"))
        socket = pathlib.Path(folder) / "socket"
        listener = await stack.enter_async_context(await anyio.create_unix_listener(socket))
        server = Server("ground", engine or MemoryEngine())
        served = await stack.enter_async_context(anyio.create_task_group())
        # Called before the group ends: nothing in it ends by itself.
        stack.callback(served.cancel_scope.cancel)
        await served.start(server.serve, [listener])
        where = [address.parse(f"unix://{socket}")]
        plain = line_module.unhurried(where, "desk")
        desk = await stack.enter_async_context(opening.opened(plain, Config()))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        source = None
        if real is not None:
            source = behind.Behind(real, desk, tasks, faked=faked, lets_through=lets_through)
        yield Ground(desk=desk, tasks=tasks, where=where, source=source)
