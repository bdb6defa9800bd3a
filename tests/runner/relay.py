"""A line that can be cut: a port of loopback that passes everything on to a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc


class Relay:
    """`url` to connect to; `cut` breaks all lines; while `closed`, new ones break at once."""

    def __init__(self, target: str, port: int) -> None:
        self._target = int(target.rpartition(":")[2])
        self._lines: set[anyio.CancelScope] = set()
        self.url = f"tcp://127.0.0.1:{port}"
        self.closed = False

    def cut(self, *, closed: bool = False) -> None:
        self.closed = closed
        for scope in self._lines:
            scope.cancel()

    async def handle(self, near: anyio.abc.SocketStream) -> None:
        async with near:
            if self.closed:
                return
            async with await anyio.connect_tcp("127.0.0.1", self._target) as far:
                with anyio.CancelScope() as scope:
                    self._lines.add(scope)
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(_pass_on, near, far, scope)
                        tasks.start_soon(_pass_on, far, near, scope)
                self._lines.discard(scope)


async def _pass_on(
    source: anyio.abc.ByteReceiveStream, sink: anyio.abc.ByteSendStream, scope: anyio.CancelScope
) -> None:
    try:
        async for data in source:
            await sink.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    scope.cancel()


@asynccontextmanager
async def relay(target: str) -> AsyncIterator[Relay]:
    """Pass lines on to the server at `target` (tcp://...) until the context ends."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        made = Relay(target, listener.extra(anyio.abc.SocketAttribute.local_port))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, made.handle)
            yield made
            tasks.cancel_scope.cancel()
