"""A client of owserver, the server of 1-wire buses, on plain anyio.

Stored as the module `onewire.owserver`; `onewire.bus` builds on it. One connection, made when it
is first needed and again after it broke; one request at a time. It retries nothing but a request
on a kept connection that turns out to be dead: how long to wait for a server that is away is its
user's business.

    async with Owserver("127.0.0.1", 4304) as ow:
        for name in await ow.dir("/"):
            ...
        await ow.read("/28.0123456789AB/temperature")     # b"     21.3125"
"""

from __future__ import annotations

import os
import struct
from types import TracebackType

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

READ, WRITE, PRESENT, DIRALL = 2, 3, 6, 7

#: Flags. Those left at 0 mean: list devices only, names as FF.SSSSSSSSSSSS, degrees Celsius.
PERSIST = 0x04  # keep the connection for more requests; a server that does not, says so
UNCACHED = 0x20  # ask the chip, whatever the server remembers
OWNET = 0x100  # what every client of this protocol sets

#: version, payload length, type or return value, flags, size, offset
HEADER = struct.Struct("!6i")

#: More than any listing or property; beyond it the peer is no owserver.
PAYLOAD_LIMIT_BYTES = 1024 * 1024

MEANINGS = {
    1: "no such file or device",
    5: "I/O error",
    19: "no such device",
    20: "not a directory",
    21: "is a directory",
    22: "invalid value",
    41: "device not found",
    43: "device error",
    44: "bus short",
    47: "bus not responding",
    51: "communication error on the bus",
    52: "communication timeout on the bus",
    58: "communication error while reading",
    67: "communication error while writing",
    95: "not supported",
}


class OwError(Exception):
    """The server answered a request with an error. `code` is its number, from 1."""

    def __init__(self, code: int, path: str) -> None:
        super().__init__(f"{path}: {MEANINGS.get(code, 'owserver error')} ({code})")
        self.code = code
        self.path = path


class OwGone(Exception):
    """The server cannot be reached, hung up, or said nothing for too long."""


def _reason(error: BaseException) -> str:
    """What the system says; anyio itself says only that all attempts to connect failed."""
    told = error.__cause__ if isinstance(error.__cause__, OSError) else error
    number = told.errno if isinstance(told, OSError) else None
    if number is not None and number > 0:  # a negative one is of a name that was not found
        return os.strerror(number).lower()
    return str(told) or "hung up"


class Owserver:
    """One owserver. `silence_s`: how long it may say nothing; `patience_s`: a whole request.

    A server at slow work gives a sign of life each second, which is why the two differ.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 4304,
        *,
        silence_s: float = 5.0,
        patience_s: float = 30.0,
    ) -> None:
        self.host = host
        self.port = port
        self.silence_s = silence_s
        self.patience_s = patience_s
        self._stream: anyio.abc.SocketStream | None = None
        self._incoming: BufferedByteReceiveStream | None = None
        self._lock = anyio.Lock()
        self._heard = False

    async def __aenter__(self) -> Owserver:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.hang_up()

    async def dir(self, path: str = "/", *, uncached: bool = False) -> list[str]:
        """The full paths of what is in a folder, devices first if it is a bus."""
        _, payload = await self._ask(DIRALL, path, uncached=uncached)
        text = payload.rstrip(b"\0").decode()
        return text.split(",") if text else []

    async def read(self, path: str, *, uncached: bool = False) -> bytes:
        """A file's content, with the blanks that the server pads numbers with."""
        size, payload = await self._ask(READ, path, size=8192, uncached=uncached)
        return payload[:size]

    async def write(self, path: str, data: bytes) -> None:
        """Write to a file. May happen twice if the line breaks: write states, not steps."""
        await self._ask(WRITE, path, data, size=len(data))

    async def present(self, path: str) -> bool:
        """Whether a device is on the bus."""
        try:
            await self._ask(PRESENT, path)
        except OwError:
            return False
        return True

    async def hang_up(self) -> None:
        """Close the connection, if there is one; the next request makes a new one."""
        stream, self._stream, self._incoming = self._stream, None, None
        if stream is not None:
            await anyio.aclose_forcefully(stream)

    async def _ask(
        self, kind: int, path: str, data: bytes = b"", *, size: int = 0, uncached: bool = False
    ) -> tuple[int, bytes]:
        flags = PERSIST | OWNET | (UNCACHED if uncached else 0)
        payload = path.encode() + b"\0" + data
        request = HEADER.pack(0, len(payload), kind, flags, size, 0) + payload
        async with self._lock:
            kept = self._stream is not None
            try:
                ret, answer = await self._exchange(request)
            except OwGone:
                if not kept or self._heard:
                    raise
                ret, answer = await self._exchange(request)
        if ret < 0:
            raise OwError(-ret, path)
        return ret, answer

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        whole = False
        self._heard = False
        try:
            with anyio.fail_after(self.patience_s):
                if self._stream is None:
                    await self._connect()
                await self._send(request)
                ret, flags, answer = await self._receive()
                whole = bool(flags & PERSIST)
                return ret, answer
        except TimeoutError as error:
            self._heard = True  # it is there, so to ask it once more would only double the wait
            raise OwGone(f"{self.host} port {self.port}: no answer in time") from error
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise OwGone(f"{self.host} port {self.port}: {_reason(error)}") from error
        except (anyio.EndOfStream, anyio.IncompleteRead) as error:
            raise OwGone(f"{self.host} port {self.port}: hung up") from error
        finally:
            if not whole:  # also after a cancellation: half an answer may still be on its way
                await self.hang_up()

    async def _connect(self) -> None:
        with anyio.fail_after(self.silence_s):
            self._stream = await anyio.connect_tcp(self.host, self.port)
        self._incoming = BufferedByteReceiveStream(self._stream)

    async def _send(self, request: bytes) -> None:
        assert self._stream is not None
        with anyio.fail_after(self.silence_s):
            await self._stream.send(request)

    async def _receive(self) -> tuple[int, int, bytes]:
        assert self._incoming is not None
        while True:
            with anyio.fail_after(self.silence_s):
                head = await self._incoming.receive_exactly(HEADER.size)
                self._heard = True
                numbers: tuple[int, int, int, int, int, int] = HEADER.unpack(head)
                version, length, ret, flags, size, _ = numbers
                if version != 0 or length > PAYLOAD_LIMIT_BYTES:
                    raise OwGone(f"{self.host} port {self.port}: this is no owserver")
                if length < 0:  # a sign of life, nothing more
                    continue
                body = await self._incoming.receive_exactly(length) if length else b""
            return ret, flags, body[:size] if size > 0 else body
