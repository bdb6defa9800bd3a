"""Frames: a 4-byte big-endian length, then that many bytes of msgpack.

Fed by whoever reads a socket (server and client alike); hands on whole frames as bytes and knows
nothing of what is in them. A frame over the limit is skipped while it arrives, so that memory is
bounded by the limit and the connection can live on.
"""

from __future__ import annotations

import struct

from moat_kv import errors

#: Before login, and after, in bytes (DESIGN: the greeting names the one in force).
LIMIT_BEFORE_LOGIN = 16 * 1024
LIMIT_DEFAULT = 1024 * 1024
#: A frame longer than this is not skipped: whoever announces it does not speak our protocol.
SKIP_LIMIT = 64 * 1024 * 1024
#: So much of an oversized frame is kept, to find its sequence number and answer it.
HEAD_BYTES = 16

#: A frame's header: how long its body is.
LENGTH = struct.Struct(">I")
HEADER_BYTES = LENGTH.size


class Oversized:
    """Stands in the list of frames for one that was over the limit and is being skipped."""

    __slots__ = ("head", "size_bytes")

    def __init__(self, size_bytes: int, head: bytes) -> None:
        self.size_bytes = size_bytes
        self.head = head


class FrameReader:
    """Cuts a stream of bytes into frames.

    `limit` may be changed at any time and holds for the frames that start afterwards.
    """

    def __init__(self, limit: int = LIMIT_DEFAULT) -> None:
        self.limit = limit
        self._buffer = bytearray()
        # So many bytes must be in the buffer before another frame can be cut from it. A peer that
        # sends its frames in small pieces would otherwise have all that came copied each time.
        self._wanted = 0
        self._to_skip = 0

    def feed(self, data: bytes) -> list[bytes | Oversized]:
        """The frames that are whole with this data, in order.

        Raises ProtocolError if a length is beyond `SKIP_LIMIT`: the connection is of no use then.
        """
        if self._to_skip:
            skipped = min(self._to_skip, len(data))
            self._to_skip -= skipped
            data = data[skipped:]
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._wanted:
                return []
            data = bytes(buffer)
        self._wanted = HEADER_BYTES
        frames: list[bytes | Oversized] = []
        start, size = 0, len(data)
        while size - start >= HEADER_BYTES:
            (length,) = LENGTH.unpack_from(data, start)
            body = start + HEADER_BYTES
            if length > self.limit:
                if length > SKIP_LIMIT:
                    raise errors.FrameTooLarge(length, SKIP_LIMIT)
                head_end = body + min(HEAD_BYTES, length)
                if size < head_end:
                    self._wanted = head_end - start
                    break
                frames.append(Oversized(length, data[body : body + HEAD_BYTES]))
                self._to_skip = max(0, length - (size - body))
                start = min(size, body + length)
                continue
            end = body + length
            if end > size:
                self._wanted = end - start
                break
            frames.append(data[body:end])
            start = end
        self._keep(data, start)
        return frames

    def _keep(self, data: bytes, start: int) -> None:
        if start < len(data):
            self._buffer = bytearray(data[start:] if start else data)
        elif self._buffer:
            self._buffer = bytearray()


def frame(body: bytes) -> bytes:
    """One frame that holds this body."""
    return LENGTH.pack(len(body)) + body
