"""A bare line to a server: sends requests as they are written, for tests of the wire itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from moat_kv import codec, transport
from moat_kv.proto import frames, messages
from moat_kv.proto.messages import Reply, State


class Line:
    """One connection; answers are kept by seq until they are asked for."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.stream = stream
        self.reader = frames.FrameReader(64 * 1024 * 1024)
        self.waiting: list[Reply] = []
        self.seq = 0

    async def send(self, action: str, value: Any = None, **arguments: Any) -> int:
        """Send a request with a packed value (if not None); returns its seq."""
        self.seq += 1
        packed = None if value is None else codec.pack(value)
        await self.stream.send(messages.pack((self.seq, action, arguments, packed)))
        return self.seq

    async def next(self, seq: int, timeout_s: float = 30) -> Reply:
        """The next answer to that request."""
        with anyio.fail_after(timeout_s):
            while True:
                for index, reply in enumerate(self.waiting):
                    if reply.seq == seq:
                        return self.waiting.pop(index)
                await self._receive()

    async def _receive(self) -> None:
        for frame in self.reader.feed(await self.stream.receive()):
            assert isinstance(frame, bytes)
            self.waiting.append(messages.unpack_reply(frame))

    async def ask(self, action: str, value: Any = None, **arguments: Any) -> Reply:
        """One request and its only answer. Raises the error that it is."""
        reply = await self.next(await self.send(action, value, **arguments))
        if reply.state == State.ERROR:
            raise messages.error_of(reply.fields)
        assert reply.state == State.REPLY
        return reply

    async def rows(self, action: str, **arguments: Any) -> list[Any]:
        """The rows of a stream that ends by itself."""
        seq = await self.send(action, **arguments)
        rows: list[Any] = []
        while True:
            reply = await self.next(seq)
            if reply.state == State.ERROR:
                raise messages.error_of(reply.fields)
            if reply.state == State.END:
                return rows
            rows.extend(reply.fields.get("rows", ()))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Line]:
    """A line to a server, after its greeting."""
    scheme, _, place = url.partition("://")
    stream: anyio.abc.ByteStream
    if scheme == "unix":
        stream = await anyio.connect_unix(place)
    else:
        host, _, port = place.rpartition(":")
        stream = await anyio.connect_tcp(host, int(port))
    stream = await transport.settled(stream)
    async with stream:
        line = Line(stream)
        greeting = await line.next(0)
        assert greeting.state == State.HELLO
        yield line
