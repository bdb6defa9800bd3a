"""The owserver protocol as a server sees it: requests in, replies out, as pure values.

Used by `server.py`, which feeds it what it receives and sends what it returns, and by `answers.py`
for the names of messages and errors. It opens no socket and knows no device.

Every message is six big-endian signed 32-bit numbers and a payload. A request carries version,
payload length, message type, flags, size and offset; a reply carries version, payload length,
return value (negative: an error), flags, size and offset. The names and numbers are those of
owserver 3.2, the details what its Debian build was seen to answer.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.Struct("!6i")
HEADER_BYTES = _HEADER.size

#: A request's payload is a path and what is written to it; the original hangs up above this too.
PAYLOAD_LIMIT_BYTES = 64 * 1024


class Kind(enum.IntEnum):
    """What a request asks for."""

    NOP = 1
    READ = 2
    WRITE = 3
    DIR = 4
    SIZE = 5
    PRESENT = 6
    DIRALL = 7
    GET = 8
    DIRALLSLASH = 9
    GETSLASH = 10


class Flag(enum.IntFlag):
    """The flags of a request that have a meaning here; a reply repeats the request's."""

    BUS_RETURN = 0x02  # list buses and system folders too, not only devices
    PERSIST = 0x04  # keep the connection for further requests
    UNCACHED = 0x20


class Code(enum.IntEnum):
    """Error numbers; a reply carries them negated."""

    NOT_FOUND = 1
    IO = 5
    NO_DEVICE = 19
    BAD_ADDRESS = 14
    NOT_A_DIRECTORY = 20
    IS_A_DIRECTORY = 21
    INVALID = 22
    NO_MESSAGE = 42
    DEVICE = 43
    BUS_SHORT = 44
    BUS_SILENT = 47
    BUS_TIMEOUT = 52
    READ_COMMUNICATION = 58
    WRITE_COMMUNICATION = 67
    BAD_MESSAGE = 74
    BAD_SIZE = 90
    NOT_SUPPORTED = 95


class OwFault(Exception):
    """A request is answered with the error `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"owserver error {code}")
        self.code = code


class BadPeer(Exception):
    """What arrived cannot be a request; the connection is of no more use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request: `path` without its closing NUL, `data` what follows it (a write's value).

    `path` is None if the payload holds no NUL-terminated text; only NOP may do without.
    """

    kind: int
    flags: int
    size: int
    offset: int
    path: str | None
    data: bytes = b""

    @property
    def persistent(self) -> bool:
        return bool(self.flags & Flag.PERSIST)

    @property
    def scale(self) -> int:
        """The temperature scale asked for: 0 Celsius, 1 Fahrenheit, 2 Kelvin, 3 Rankine."""
        return self.flags >> 16 & 3

    @property
    def name_format(self) -> int:
        """How device names are to be written, 0 to 5 (see `devices.format_name`)."""
        return self.flags >> 24 & 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One answer. A listing by DIR is several: one `Reply` an item, and a last, empty one."""

    flags: int
    ret: int = 0
    payload: bytes = b""
    size: int = 0
    offset: int = 0

    def encode(self) -> bytes:
        header = _HEADER.pack(0, len(self.payload), self.ret, self.flags, self.size, self.offset)
        return header + self.payload


def ping(flags: int) -> bytes:
    """The frame that says "still at it"; the original sends one a second during slow work."""
    return _HEADER.pack(0, -1, 0, flags, 0, 0)


class RequestParser:
    """Cuts a byte stream into requests."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Request]:
        """Add what was received and yield each request that is now whole.

        Raises `BadPeer` for a payload length that no client sends.
        """
        self._buffer += data
        while len(self._buffer) >= HEADER_BYTES:
            _version, length, kind, flags, size, offset = _HEADER.unpack_from(self._buffer)
            length = max(length, 0)
            if length > PAYLOAD_LIMIT_BYTES:
                raise BadPeer(f"a payload of {length} bytes")
            if len(self._buffer) < HEADER_BYTES + length:
                return
            payload = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + length])
            del self._buffer[: HEADER_BYTES + length]
            path, data = _split(payload)
            yield Request(kind=kind, flags=flags, size=size, offset=offset, path=path, data=data)


def _split(payload: bytes) -> tuple[str | None, bytes]:
    head, nul, tail = payload.partition(b"\0")
    if not nul:
        return None, b""
    try:
        return head.decode(), tail
    except UnicodeDecodeError:
        return None, b""
