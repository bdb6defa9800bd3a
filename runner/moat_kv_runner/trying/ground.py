"""The ground that a script is tried out on: a server in this process, its tree in memory.

`running_ground` makes it with two lines: the script's own, which is watched (`line`), and a desk's,
for whoever prepares and looks. With a client of a real server, what is not faked comes from there.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.abc

from moat_kv.client import address, opening
from moat_kv.client.client import Client
from moat_kv.config import Config
from moat_kv.engine.memory import MemoryEngine
from moat_kv.path import Path
from moat_kv.server.server import Server
from moat_kv_runner.trying import behind, line


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What `running_ground` gives."""

    script: Client
    """The line of the script."""
    desk: Client
    """Another one; what it does is not told."""
    server: Server


@asynccontextmanager
async def running_ground(
    tell: line.Tell,
    *,
    real: Client | None = None,
    faked: Collection[Path] = (),
    lets_through: bool = False,
    engine: MemoryEngine | None = None,
) -> AsyncIterator[Ground]:
    """A ground, until the context ends. `tell` gets what the script writes.

    `real`: a client of the server from which all but `faked` comes; `lets_through`: what the script
    writes is written there as well.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="moat-try-"))
        socket = pathlib.Path(folder) / "socket"
        listener = await stack.enter_async_context(await anyio.create_unix_listener(socket))
        server = Server("ground", engine or MemoryEngine())
        tasks = await stack.enter_async_context(anyio.create_task_group())
        # Called before the group ends: nothing here ends by itself.
        stack.callback(tasks.cancel_scope.cancel)
        await tasks.start(server.serve, [listener])
        where = [address.parse(f"unix://{socket}")]
        plain = line.unhurried(where, "desk")
        desk = await stack.enter_async_context(opening.opened(plain, Config()))
        source = None
        if real is not None:
            feeders = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(feeders.cancel_scope.cancel)
            source = behind.Behind(real, desk, feeders, faked=faked, lets_through=lets_through)
        watched = line.TrialLink(where, tell=tell, source=source)
        script = await stack.enter_async_context(opening.opened(watched, Config()))
        yield Ground(script=script, desk=desk, server=server)
