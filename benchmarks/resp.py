"""A client of Redis, written as plainly as that of the echo server.

Redis answers in order, so the calls that wait are a queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc

READ_BYTES = 128 * 1024


class _Call:
    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.answer: bytes | None = None


class RedisClient:
    """One line to a Redis server. `call` may be used by any number of tasks."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._calls: deque[_Call] = deque()
        self._outgoing: list[bytes] = []
        self._sending = False

    async def call(self, *words: bytes) -> bytes | None:
        """One command; its answer, without Redis' mark of the type. RuntimeError for an error."""
        call = _Call()
        self._calls.append(call)
        parts = [b"*%d\r\n" % len(words)]
        parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
        self._outgoing.append(b"".join(parts))
        if not self._sending:
            await self._send()
        await call.done.wait()
        return call.answer

    async def _send(self) -> None:
        self._sending = True
        while self._outgoing:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            await self._stream.send(data)
        self._sending = False

    async def read(self) -> None:
        """Take answers until cancelled."""
        buffer = b""
        while True:
            buffer += await self._stream.receive(READ_BYTES)
            start = 0
            while (found := _answer(buffer, start)) is not None:
                call = self._calls.popleft()
                call.answer, start = found
                call.done.set()
            buffer = buffer[start:]


def _answer(data: bytes, start: int) -> tuple[bytes | None, int] | None:
    """The answer that begins there, and where the next one does; None if it is not whole."""
    end = data.find(b"\r\n", start)
    if end < 0:
        return None
    kind, line, after = data[start : start + 1], data[start + 1 : end], end + 2
    if kind == b"-":
        raise RuntimeError(f"Redis says: {line.decode()}")
    if kind != b"$":
        return line, after
    size = int(line)
    if size < 0:
        return None, after
    if len(data) < after + size + 2:
        return None
    return data[after : after + size], after + size + 2


@asynccontextmanager
async def open_redis(port: int, socket: str | None) -> AsyncIterator[RedisClient]:
    """A client on the Unix socket if that is given, else on the port of loopback."""
    stream: anyio.abc.ByteStream
    if socket is not None:
        stream = await anyio.connect_unix(socket)
    else:
        stream = await anyio.connect_tcp("127.0.0.1", port)
    async with stream, anyio.create_task_group() as tasks:
        client = RedisClient(stream)
        tasks.start_soon(client.read)
        yield client
        tasks.cancel_scope.cancel()
