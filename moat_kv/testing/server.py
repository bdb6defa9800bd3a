"""A server for tests, in the test's own process.

Used by the tests of this package and by those of its users' scripts; it listens on a Unix socket
in a temporary folder, or on a free port of loopback.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path as FilePath

import anyio
import anyio.abc

from moat_kv.engine.base import Engine
from moat_kv.engine.memory import MemoryEngine
from moat_kv.server.server import Server
from moat_kv.server.times import DEFAULT_TIMES, Times


class RunningServer:
    """A server that is being served, and the URL to reach it."""

    def __init__(self, server: Server, url: str) -> None:
        self.server = server
        self.url = url


@asynccontextmanager
async def running_server(
    node: str = "test",
    *,
    engine: Engine | None = None,
    tcp: bool = False,
    port: int = 0,
    socket: FilePath | None = None,
    times: Times = DEFAULT_TIMES,
) -> AsyncIterator[RunningServer]:
    """Serve until the context ends. Without an engine the tree is in memory only.

    `tcp`: listen on loopback, on `port` or on a free one, instead of a Unix socket (`socket`, or
    one in a temporary folder).
    """
    async with AsyncExitStack() as stack:
        listener: anyio.abc.Listener[anyio.abc.ByteStream]
        if tcp:
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
            bound = listener.extra(anyio.abc.SocketAttribute.local_port)
            url = f"tcp://127.0.0.1:{bound}"
        else:
            if socket is None:
                socket = FilePath(stack.enter_context(tempfile.TemporaryDirectory())) / "socket"
            listener = await anyio.create_unix_listener(socket)
            url = f"unix://{socket}"
        await stack.enter_async_context(listener)
        server = Server(node, engine or MemoryEngine(), urls=[url], times=times)
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.serve, [listener])
            yield RunningServer(server, url)
            tasks.cancel_scope.cancel()
