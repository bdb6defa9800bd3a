"""A line's weak point: passes bytes between clients and a server, and breaks when told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc

from moat_kv.client.handshake import LINE_ERRORS


class Proxy:
    """Between clients and one server (`target`, a TCP port)."""

    def __init__(self, port: int) -> None:
        self.target: int | None = None
        self.url = f"tcp://127.0.0.1:{port}"
        #: How many lines were made so far.
        self.lines = 0
        self._open: list[tuple[anyio.abc.ByteStream, anyio.abc.ByteStream]] = []
        self._answers = anyio.Event()
        self._answers.set()
        self._requests = anyio.Event()
        self._requests.set()
        self._refusing = False
        #: Something waits here.
        self.held = False
        #: How many lines were broken at once.
        self.refused = 0

    def hold_answers(self) -> None:
        """From now on answers wait here."""
        self._answers = anyio.Event()

    def hold_requests(self) -> None:
        """From now on requests wait here."""
        self._requests = anyio.Event()

    def release_requests(self) -> None:
        self._requests.set()

    def pass_what_comes(self) -> anyio.Event:
        """Requests pass again, but those that are held wait on, for the event that is returned."""
        held, self._requests = self._requests, anyio.Event()
        self._requests.set()
        return held

    def release_answers(self) -> None:
        self._answers.set()

    async def cut(self, *, refuse: bool = False) -> None:
        """Break all lines; with `refuse` new ones break at once, until `accept`."""
        self._refusing = refuse
        lines, self._open = self._open, []
        for pair in lines:
            for end in pair:
                await anyio.aclose_forcefully(end)

    def accept(self) -> None:
        self._refusing = False

    async def serve(self, client: anyio.abc.ByteStream) -> None:
        if self._refusing or self.target is None:
            self.refused += 1
            await anyio.aclose_forcefully(client)
            return
        server = await anyio.connect_tcp("127.0.0.1", self.target)
        self.lines += 1
        self._open.append((client, server))
        async with client, server, anyio.create_task_group() as tasks:
            tasks.start_soon(self._pass_on, client, server, False)
            await self._pass_on(server, client, True)
            tasks.cancel_scope.cancel()

    async def _pass_on(
        self, source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream, answers: bool
    ) -> None:
        try:
            while True:
                data = await source.receive()
                let_through = self._answers if answers else self._requests
                self.held = not let_through.is_set()
                await let_through.wait()
                await sink.send(data)
        except LINE_ERRORS:
            await anyio.aclose_forcefully(source)
            await anyio.aclose_forcefully(sink)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@asynccontextmanager
async def proxied(url: str | None) -> AsyncIterator[Proxy]:
    """A proxy before the server at a TCP URL (None: before none yet)."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        proxy = Proxy(listener.extra(anyio.abc.SocketAttribute.local_port))
        proxy.target = port_of(url) if url is not None else None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, proxy.serve)
            yield proxy
            await proxy.cut(refuse=True)
            tasks.cancel_scope.cancel()
