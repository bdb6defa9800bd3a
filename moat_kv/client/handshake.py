"""From an address to a line that is ready for requests: dial, read the greeting, say hello.

Called by `link` for each attempt. Everything that can be wrong at the other end, from nobody there
to somebody else there, comes out as CannotConnect with one clear line.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import anyio
import anyio.abc

from moat_kv import errors, transport
from moat_kv.client import results
from moat_kv.client.address import Address
from moat_kv.proto import frames, messages
from moat_kv.proto.messages import State

#: A server greets at once; whoever has not within so many seconds is none, or hangs.
GREETING_LIMIT_S = 5.0
#: The longest reply that is read, in bytes. Above what a server takes in a request, because a
#: reply carries more beside the value; below, so that memory is bounded.
REPLY_LIMIT = 16 * 1024 * 1024
#: The seq of hello; the connection counts on from here.
HELLO_SEQ = 1

_READ_BYTES = 64 * 1024
#: What the line's end looks like, on both event loops.
LINE_ERRORS = (
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    OSError,
)


class Line:
    """A stream of bytes with a server that has greeted and knows who we are."""

    def __init__(
        self, stream: anyio.abc.ByteStream, reader: frames.FrameReader, server: results.ServerInfo
    ) -> None:
        self.stream = stream
        self.reader = reader
        self.server = server


async def reach(address: Address, *, name: str, seen: int, epoch: str, limit_s: float) -> Line:
    """Connect, and exchange greetings. `seen`: the highest revision seen within `epoch`.

    Raises CannotConnect, or Behind if the server has not yet seen that revision.
    """
    stream = await _dial(address, limit_s)
    try:
        line = await greet(stream, address.url)
        if line.server.epoch != epoch:
            seen = 0
        await _hello(line, {"client": name, "seen": seen, "epoch": line.server.epoch})
    except BaseException:  # cancelled, too: nobody else has the stream yet
        await anyio.aclose_forcefully(stream)
        raise
    return line


async def _dial(address: Address, limit_s: float) -> anyio.abc.ByteStream:
    stream: anyio.abc.ByteStream
    try:
        with anyio.fail_after(limit_s):
            if address.socket is not None:
                stream = await transport.settled(await anyio.connect_unix(address.socket))
            else:
                stream = await anyio.connect_tcp(address.host, address.port)
    except TimeoutError as exc:
        raise errors.CannotConnect(address.url, f"no answer within {limit_s:g} s") from exc
    except (OSError, ValueError) as exc:  # ValueError: no host name can be so
        raise errors.CannotConnect(address.url, _reason(exc)) from exc
    return stream


def _reason(exc: Exception) -> str:
    """What the operating system said, without anyio's wrapping."""
    inner: BaseException = exc
    while inner.__cause__ is not None:
        inner = inner.__cause__
    if isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return plain_words(inner)


def plain_words(exc: BaseException) -> str:
    """A failure of the system in its own few words."""
    if isinstance(exc, FileNotFoundError):
        return "there is no such socket"
    if isinstance(exc, socket.gaierror):
        return f"no such host ({(exc.strerror or 'unknown').lower()})"
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno).lower()
    return str(exc).lower() or type(exc).__name__


async def greet(stream: anyio.abc.ByteStream, url: str) -> Line:
    """Read the greeting. Raises CannotConnect if it is none, or none of our protocol's version."""
    reader = frames.FrameReader(REPLY_LIMIT)
    try:
        with anyio.fail_after(GREETING_LIMIT_S):
            body = await _next_frame(stream, reader)
    except TimeoutError as exc:
        reason = f"no greeting within {GREETING_LIMIT_S:g} s; no moat-kv server, or it hangs"
        raise errors.CannotConnect(url, reason) from exc
    except errors.ProtocolError as exc:
        raise errors.CannotConnect(url, f"this is no moat-kv server ({exc})") from exc
    except LINE_ERRORS as exc:
        raise errors.CannotConnect(url, "the line was closed before any greeting") from exc
    return Line(stream, reader, _read_greeting(body, url))


async def _next_frame(stream: anyio.abc.ByteStream, reader: frames.FrameReader) -> bytes:
    """The next frame of a peer that sends nothing after it until it is asked."""
    while True:
        found = reader.feed(await stream.receive(_READ_BYTES))
        if not found:
            continue
        if len(found) > 1 or not isinstance(found[0], bytes):
            raise errors.BadFrame("one short frame was expected")
        return found[0]


def _read_greeting(body: bytes, url: str) -> results.ServerInfo:
    try:
        reply = messages.unpack_reply(body)
    except errors.MoatKvError as exc:
        raise errors.CannotConnect(url, f"this is no moat-kv server ({exc})") from exc
    fields = reply.fields
    if reply.state == State.ERROR:
        raise errors.CannotConnect(url, f"the server refuses: {messages.error_of(fields)}")
    if reply.state != State.HELLO or type(fields) is not dict or "protocol" not in fields:
        raise errors.CannotConnect(url, "this is no moat-kv server (it does not greet)")
    if fields["protocol"] != messages.PROTOCOL_VERSION:
        theirs, ours = fields["protocol"], messages.PROTOCOL_VERSION
        reason = f"the server speaks version {theirs} of the protocol, this client version {ours}"
        raise errors.CannotConnect(url, reason)
    return _server_info(fields, url)


def _server_info(fields: dict[str, Any], url: str) -> results.ServerInfo:
    try:
        return results.ServerInfo(
            node=str(fields["node"]),
            epoch=str(fields["epoch"]),
            version=str(fields["version"]),
            incarnation=str(fields["incarnation"]),
            protocol=fields["protocol"],
            revision=int(fields["revision"]),
            floor=int(fields["floor"]),
            frame_limit=int(fields["frame_limit"]),
            url=url,
        )
    except (KeyError, TypeError, ValueError) as exc:
        reason = f"the greeting is not as it should be ({type(exc).__name__}: {exc})"
        raise errors.CannotConnect(url, reason) from exc


async def _hello(line: Line, arguments: dict[str, Any]) -> None:
    url = line.server.url
    try:
        with anyio.fail_after(GREETING_LIMIT_S):
            await line.stream.send(messages.pack((HELLO_SEQ, "hello", arguments, None)))
            reply = messages.unpack_reply(await _next_frame(line.stream, line.reader))
    except TimeoutError as exc:
        reason = f"no answer to hello within {GREETING_LIMIT_S:g} s"
        raise errors.CannotConnect(url, reason) from exc
    except errors.ProtocolError as exc:
        raise errors.CannotConnect(url, f"the answer to hello is none ({exc})") from exc
    except LINE_ERRORS as exc:
        raise errors.CannotConnect(url, "the line was closed in the middle of greeting") from exc
    if reply.state != State.REPLY:
        error = messages.error_of(reply.fields)
        if isinstance(error, errors.Behind):
            raise error
        raise errors.CannotConnect(url, f"the server refuses: {error}")
