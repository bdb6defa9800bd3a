"""Redis servers for the benchmarks of coordination, reached through redis-py.

The others speak to Redis with a client that is as plain as ours is; locks are compared with those
that redis-py brings along.
"""

from __future__ import annotations

import asyncio
import pathlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio

from benchmarks import peers

#: Redis may take so long until it can be reached, in seconds.
START_S = 10.0
END_S = 20.0


@asynccontextmanager
async def opened(place: peers.Place, *, synced: bool) -> AsyncIterator[Any]:
    """A redis-py client of a server of its own; None if either is not installed.

    `synced`: each write is on disk before it is answered, as ours are.
    """
    program = shutil.which("redis-server")
    try:
        import redis.asyncio as redis
    except ImportError:
        program = None
    if program is None:
        yield None
        return
    folder, socket = place.new("redis"), place.new("socket")
    folder.mkdir()
    command = [program, "--dir", str(folder), "--port", "0", "--unixsocket", str(socket)]
    command += ["--save", "", "--daemonize", "no", "--logfile", "redis.log"]
    command += ["--appendonly", "yes" if synced else "no", "--appendfsync", "always"]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_process(command, socket))
        client = redis.Redis(unix_socket_path=str(socket))
        stack.push_async_callback(client.aclose)
        yield client


@asynccontextmanager
async def _process(command: list[str], socket: pathlib.Path) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    try:
        with anyio.fail_after(START_S):
            # Redis tells nobody when it is ready.
            while not await anyio.Path(socket).exists():  # noqa: ASYNC110
                await anyio.sleep(0.02)
        yield
    finally:
        process.terminate()
        with anyio.fail_after(END_S, shield=True):
            await process.wait()
