"""Streams from sockets: what server and client do alike before a byte is read.

Called with each new stream by both sides; hands back the stream to use.
"""

from __future__ import annotations

import asyncio
import socket

import anyio.abc


async def settled(stream: anyio.abc.ByteStream) -> anyio.abc.ByteStream:
    """The same line, as a stream that can be cancelled while data arrive.

    On asyncio, anyio reads Unix sockets by callbacks on a future. A cancellation in the very turn
    in which data arrive then makes the loop log an InvalidStateError (anyio 4.16,
    `_RawSocketMixin._wait_until_readable`), and each read costs two changes of the selector. The
    stream that anyio uses for TCP has neither fault and takes any stream socket.
    """
    if stream.extra(anyio.abc.SocketAttribute.family, None) != socket.AF_UNIX:
        return stream
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return stream
    return await anyio.abc.SocketStream.from_socket(
        stream.extra(anyio.abc.SocketAttribute.raw_socket)
    )
