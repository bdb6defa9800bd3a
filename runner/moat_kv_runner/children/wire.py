"""What a runner and its children say to each other: frames of msgpack on sockets between them.

Both sides use it. A frame is a 4-byte length and `[kind, run, fields]`: `run` tells apart the runs
that share a child, 0 is the child itself. Nothing is ever unpickled, and nothing is called by a
name that came in a frame. The kinds:

- control, to the child: `start`, `stop`, `state`, `answer`, `exit`;
- control, from the child: `begun`, `result`, `failed`, `cut_off`, `ask`;
- beside (imports, the child blocks meanwhile): `import`, answered by `module`;
- keeper (packets, without lengths): `stop` to it; `pid`, `stuck`, `ended` from it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from moat_kv import codec, errors
from moat_kv.proto import frames

#: A call carries code and data, which were each a value of the tree; far above what those can be.
LIMIT_BYTES = 32 * 1024 * 1024
#: The longest packet of a keeper.
PACKET_BYTES = 64 * 1024
READ_BYTES = 64 * 1024


class Frame(NamedTuple):
    kind: str
    run: int
    fields: dict[str, Any]


def packet(kind: str, run: int = 0, **fields: Any) -> bytes:
    """A frame without its length. Raises BadValue."""
    return codec.pack([kind, run, fields])


def packed(kind: str, run: int = 0, **fields: Any) -> bytes:
    """A frame as it travels. Raises BadValue for fields that cannot be carried."""
    body = packet(kind, run, **fields)
    return frames.LENGTH.pack(len(body)) + body


def unpacked(body: bytes) -> Frame:
    """Raises ProtocolError."""
    try:
        kind, run, fields = codec.unpack(body)
    except (errors.BadValue, TypeError, ValueError) as exc:
        raise errors.BadFrame(f"no frame: {exc}") from exc
    if type(kind) is not str or type(run) is not int or not isinstance(fields, dict):
        raise errors.BadFrame(f"no frame: {kind!r:.40}, {run!r:.40}")
    return Frame(kind, run, fields)


class Reader:
    """Cuts what comes into frames. Raises ProtocolError where there are none."""

    def __init__(self) -> None:
        self._frames = frames.FrameReader(LIMIT_BYTES)

    def feed(self, data: bytes) -> Iterator[Frame]:
        for body in self._frames.feed(data):
            if not isinstance(body, bytes):
                raise errors.FrameTooLarge(body.size_bytes, LIMIT_BYTES)
            yield unpacked(body)


def receive(sock: socket.socket) -> Frame | None:
    """The next frame of a peer that then waits to be asked; blocks. None: it is gone."""
    head = _exactly(sock, frames.HEADER_BYTES)
    if head is None:
        return None
    (length,) = frames.LENGTH.unpack(head)
    if length > LIMIT_BYTES:
        raise errors.FrameTooLarge(length, LIMIT_BYTES)
    body = _exactly(sock, length)
    return None if body is None else unpacked(body)


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)
