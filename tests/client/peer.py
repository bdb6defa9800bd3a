"""The other end of a line, played by the test, and lines between the two in memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from moat_kv.client import connection, handshake, results
from moat_kv.proto import frames, messages
from moat_kv.proto.messages import State

GREETING: dict[str, Any] = {
    "protocol": messages.PROTOCOL_VERSION,
    "version": "0.1.0",
    "node": "peer",
    "incarnation": "1",
    "epoch": "one",
    "revision": 7,
    "floor": 0,
    "login": [],
    "frame_limit": frames.LIMIT_DEFAULT,
}


class _Pipe:
    """One direction of a line in memory, of so many chunks."""

    def __init__(self, capacity: float) -> None:
        self._capacity = capacity
        self._chunks: deque[bytes] = deque()
        self.closed = False
        self._news = anyio.Event()

    def close(self) -> None:
        self.closed = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def put(self, data: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        while len(self._chunks) >= self._capacity and not self.closed:
            await self._news.wait()
        if self.closed:
            raise anyio.BrokenResourceError
        self._chunks.append(data)
        self._tell()

    async def take(self, max_bytes: int) -> bytes:
        await anyio.lowlevel.checkpoint()
        while not self._chunks:
            if self.closed:
                raise anyio.EndOfStream
            await self._news.wait()
        data = self._chunks.popleft()
        if len(data) > max_bytes:
            self._chunks.appendleft(data[max_bytes:])
        self._tell()
        return data[:max_bytes]


class MemoryStream(anyio.abc.ByteStream):
    """One end of a line in memory; closing it closes both directions."""

    def __init__(self, outwards: _Pipe, inwards: _Pipe) -> None:
        self._outwards = outwards
        self._inwards = inwards
        self.chunks_sent = 0

    async def send(self, item: bytes) -> None:
        await self._outwards.put(bytes(item))
        self.chunks_sent += 1

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._inwards.take(max_bytes)

    async def send_eof(self) -> None:
        self._outwards.close()

    async def aclose(self) -> None:
        self._outwards.close()
        self._inwards.close()


def memory_line(capacity: float = math.inf) -> tuple[MemoryStream, MemoryStream]:
    """Both ends; so many chunks that the second one has not read block the first one."""
    there, back = _Pipe(capacity), _Pipe(math.inf)
    return MemoryStream(there, back), MemoryStream(back, there)


class Peer:
    """Speaks as a server does, one step at a time."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.stream = stream
        self._frames = frames.FrameReader(64 * 1024 * 1024)
        self._requests: list[messages.Request] = []

    async def greet(self, **changes: Any) -> None:
        fields = {**GREETING, **changes}
        await self.stream.send(messages.pack((0, State.HELLO, fields, None)))

    async def answer_hello(self) -> messages.Request:
        request = await self.request("hello")
        await self.reply(request.seq)
        return request

    async def request(self, action: str | None = None) -> messages.Request:
        """The next request; it must be of that action."""
        while not self._requests:
            for frame in self._frames.feed(await self.stream.receive()):
                assert isinstance(frame, bytes)
                self._requests.append(messages.unpack_request(frame))
        request = self._requests.pop(0)
        assert action in (None, request.action)
        return request

    async def reply(
        self,
        seq: int,
        fields: dict[str, Any] | None = None,
        value: bytes | None = None,
        *,
        state: State = State.REPLY,
    ) -> None:
        await self.stream.send(messages.pack((seq, state, fields or {}, value)))


class Ends:
    """A connection of the client's, and the peer at its other end."""

    def __init__(self, line: connection.Connection, peer: Peer, stream: MemoryStream) -> None:
        self.line = line
        self.peer = peer
        self.stream = stream
        self.breaks: list[str] = []


@asynccontextmanager
async def connected(
    *, request_timeout_s: float = 60, silence_s: float = 60, capacity: float = math.inf
) -> AsyncIterator[Ends]:
    """A connection that is being served, as after greeting."""
    ours, theirs = memory_line(capacity)
    server = results.ServerInfo(
        url="memory", **{name: item for name, item in GREETING.items() if name != "login"}
    )
    breaks: list[str] = []
    line = connection.Connection(
        handshake.Line(ours, frames.FrameReader(handshake.REPLY_LIMIT), server),
        request_timeout_s=request_timeout_s,
        silence_s=silence_s,
        on_broken=lambda _line, reason: breaks.append(reason),
    )
    ends = Ends(line, Peer(theirs), ours)
    ends.breaks = breaks
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(line.run)
        await anyio.wait_all_tasks_blocked()
        yield ends
        line.close("the test is over")
    await theirs.aclose()


class StreamLog:
    """A stream that keeps what it is told."""

    def __init__(self) -> None:
        self.lagging = False
        self.told: list[Any] = []
        self.news = anyio.Event()

    def started(self, fields: dict[str, Any]) -> None:
        self._note("started")

    def item(self, fields: dict[str, Any], value: bytes | None) -> None:
        self._note(fields)

    def ended(self, error: Exception | None) -> None:
        self._note(("ended", error))

    def interrupted(self, reason: str) -> None:
        self._note(("interrupted", reason))

    def _note(self, what: Any) -> None:
        self.told.append(what)
        self.news.set()

    async def wait_for(self, count: int) -> list[Any]:
        while len(self.told) < count:
            self.news = anyio.Event()
            await self.news.wait()
        return self.told


class Outcome:
    """What became of a call in a task of its own."""

    def __init__(self) -> None:
        self.reply: messages.Reply | None = None
        self.error: Exception | None = None
        self.scope = anyio.CancelScope()
        self.cancelled = False

    async def run(self, line: connection.Connection, *args: Any) -> None:
        with self.scope:
            try:
                self.reply = await line.call(*args)
            except Exception as exc:
                self.error = exc
        self.cancelled = self.scope.cancelled_caught
