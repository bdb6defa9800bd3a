"""Streams from sockets: what server and client do alike before a byte is read.

On asyncio, plain sockets get a stream of our own here. Those of anyio 4 read ahead without bound if
a peer sends before it is first listened to (`StreamProtocol` is not paused then, and stays so until
its queue is empty for once: 2 GB in 8 s, measured); and those for Unix sockets, cancelled in the
very turn in which data arrive, make the loop log an InvalidStateError. On trio, anyio's are fine.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections import deque
from typing import cast

import anyio
import anyio.abc


def on_asyncio() -> bool:
    """Whether the event loop that runs now is asyncio's (or uvloop)."""
    trio = sys.modules.get("trio")
    return trio is None or not trio.lowlevel.in_trio_run()


async def settled(stream: anyio.abc.ByteStream) -> anyio.abc.ByteStream:
    """The same line, as a stream that can be cancelled while data arrive.

    Raises OSError if the peer has gone already.
    """
    if stream.extra(anyio.abc.SocketAttribute.family, None) != socket.AF_UNIX or not on_asyncio():
        return stream
    return await over(stream.extra(anyio.abc.SocketAttribute.raw_socket))


async def accept(listener: anyio.abc.SocketListener) -> anyio.abc.ByteStream:
    """The next client's stream. Raises OSError, BrokenResourceError."""
    if not on_asyncio():
        return await listener.accept()
    raw = listener.extra(anyio.abc.SocketAttribute.raw_socket)
    loop = asyncio.get_running_loop()
    try:
        client, _address = await loop.sock_accept(raw)
    except asyncio.CancelledError:
        # Older loops leave it to us.
        with contextlib.suppress(OSError, ValueError):
            loop.remove_reader(raw)
        raise
    return await over(client)


async def over(raw: socket.socket) -> LoopStream:
    """A stream over a connected socket, which is the stream's from now on. Only on asyncio."""
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        _, protocol = await loop.connect_accepted_socket(_Protocol, raw)
    except BaseException:  # cancelled, too: the socket is ours, and no stream has it yet
        raw.close()
        raise
    return LoopStream(protocol)


class _Protocol(asyncio.Protocol):
    """Takes what the loop reads, and stops it from reading while there is something to take."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.paused = False
        self.at_eof = False
        self.lost = False
        self.error: Exception | None = None
        # While somebody waits for data, or for room to send.
        self.reader: asyncio.Future[None] | None = None
        self.writer: asyncio.Future[None] | None = None
        self.is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast("asyncio.Transport", transport)
        # Sending ends when the system has taken it, so that what waits is counted by us.
        transport.set_write_buffer_limits(0)

    def data_received(self, data: bytes) -> None:
        self.chunks.append(data)
        if self.reader is None:
            self.paused = True
            self.transport.pause_reading()
        else:
            _wake(self.reader)
            # One that comes before the reader has its turn finds nobody waiting.
            self.reader = None

    def eof_received(self) -> bool:
        self.at_eof = True
        _wake(self.reader)
        return True  # we may still send

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.error = exc
        _wake(self.reader)
        _wake(self.writer)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        _wake(self.writer)


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


class LoopStream(anyio.abc.SocketStream):
    """A socket's stream that holds at most one chunk of the loop's beside what is being read."""

    def __init__(self, protocol: _Protocol) -> None:
        self._protocol = protocol
        self._closed = False

    @property
    def _raw_socket(self) -> socket.socket:
        raw: socket.socket = self._protocol.transport.get_extra_info("socket")
        return raw

    async def receive(self, max_bytes: int = 65536) -> bytes:
        protocol = self._protocol
        if protocol.chunks:
            await asyncio.sleep(0)
        else:
            await self._wait_for_data()
        if not protocol.chunks:
            if self._closed:
                raise anyio.ClosedResourceError
            if protocol.error is not None:
                raise anyio.BrokenResourceError from protocol.error
            raise anyio.EndOfStream
        chunk = protocol.chunks.popleft()
        if len(chunk) > max_bytes:
            protocol.chunks.appendleft(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        return chunk

    async def _wait_for_data(self) -> None:
        protocol = self._protocol
        if protocol.at_eof or protocol.lost:
            return
        if protocol.reader is not None:
            raise anyio.BusyResourceError("reading from")
        protocol.reader = waiting = asyncio.get_running_loop().create_future()
        try:
            if protocol.paused:
                protocol.paused = False
                protocol.transport.resume_reading()
            await waiting
        finally:
            if protocol.reader is waiting:
                protocol.reader = None

    async def send(self, item: bytes) -> None:
        protocol = self._protocol
        # A turn for the others, and for whoever cancels.
        await asyncio.sleep(0)
        await self._wait_for_room()
        protocol.transport.write(item)
        await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        protocol = self._protocol
        while protocol.is_full and not protocol.lost:
            if protocol.writer is not None:
                raise anyio.BusyResourceError("writing to")
            protocol.writer = asyncio.get_running_loop().create_future()
            try:
                await protocol.writer
            finally:
                protocol.writer = None
        if self._closed:
            raise anyio.ClosedResourceError
        if protocol.lost or protocol.transport.is_closing():
            raise anyio.BrokenResourceError from protocol.error

    async def send_eof(self) -> None:
        with contextlib.suppress(OSError):
            self._protocol.transport.write_eof()

    async def aclose(self) -> None:
        self._closed = True
        self._protocol.transport.abort()
        await asyncio.sleep(0)
