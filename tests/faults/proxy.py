"""A bad network between two ends: a TCP proxy that cuts, refuses, delays, holds and flaps.

For fault tests that have no root rights, where network namespaces would do the same. It passes
bytes on and never looks at them. What it does to a line is what a network does: a cut tells neither
end anything (nothing comes through, not even that the other end has closed), and when it is healed
what waited comes through, as TCP would send it again. Runs on both event loops.
"""

from __future__ import annotations

import math
import random
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import anyio
import anyio.abc

#: A direction of bytes: from whoever connects to the target, or back.
Way = Literal["there", "back"]

#: So many bytes may be under way in one direction of a line; then its sender has to wait.
UNDER_WAY_BYTES = 1024 * 1024
CHUNK_BYTES = 64 * 1024
#: What the ends of a line raise when it breaks.
_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


@dataclass(frozen=True, kw_only=True)
class Slowness:
    """What happens to each chunk on its way."""

    delay_s: float = 0.0
    hold_share: float = 0.0
    """So many of the chunks (0 to 1) are held for longer, and with them all that follow."""
    hold_s: tuple[float, float] = (0.2, 1.2)
    """For how long, at least and at most."""

    def of_chunk(self, chance: random.Random) -> float:
        """How long one chunk takes, in seconds."""
        is_held = self.hold_share and chance.random() < self.hold_share
        return self.delay_s + (chance.uniform(*self.hold_s) if is_held else 0.0)


class Gate:
    """Open or shut; whoever comes to it waits until it is open."""

    def __init__(self) -> None:
        self._opened = anyio.Event()
        self._opened.set()

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def shut(self) -> None:
        if self.is_open:
            self._opened = anyio.Event()

    def open(self) -> None:
        self._opened.set()

    async def passed(self) -> None:
        """Wait until it is open, now and not a while ago."""
        while not self._opened.is_set():
            await self._opened.wait()


class Proxy:
    """Between all who connect to `port` of loopback, and a target. Made by `proxied`.

    All that is set holds for lines that are there already, and for new ones.
    """

    def __init__(self, port: int, target: tuple[str, int], chance: random.Random) -> None:
        self.port = port
        self.target = target
        #: How many lines were begun, and the bytes that came through.
        self.begun = 0
        self.passed_bytes: dict[Way, int] = {"there": 0, "back": 0}
        self._chance = chance
        self._gates: dict[Way, Gate] = {"there": Gate(), "back": Gate()}
        self._slowness = Slowness()
        self._refuses = False
        self._lines: set[_Line] = set()
        self._flapping: anyio.CancelScope | None = None

    @property
    def url(self) -> str:
        """`tcp://127.0.0.1:PORT`."""
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def open_lines(self) -> int:
        return len(self._lines)

    # What can be done to the network ------------------------------------------------------------

    def cut(self, *ways: Way) -> None:
        """From now on nothing comes through, in these directions (none named: in both).

        Nobody is told. New lines seem to be there, but do not reach the target, unless only one
        direction of old ones is cut: then neither do new ones.
        """
        for way in ways or self._gates:
            self._gates[way].shut()

    def refuse(self) -> None:
        """Break all lines at once, and each new one as soon as it is made."""
        self._refuses = True
        self.reset()

    def reset(self) -> None:
        """Break all lines at once; new ones are as before."""
        for line in list(self._lines):
            line.reset()

    def slow(
        self,
        delay_s: float = 0.0,
        *,
        hold_share: float = 0.0,
        hold_s: tuple[float, float] = (0.2, 1.2),
    ) -> None:
        """Each chunk takes this long, each way; a share of them longer. No arguments: no more."""
        self._slowness = Slowness(delay_s=delay_s, hold_share=hold_share, hold_s=hold_s)

    async def flap(self, *, up_s: float, down_s: float, times: float = math.inf) -> None:
        """Cut and let through again, so many times, or until `heal`. It begins with a cut.

        For a task of its own; returns with the network healed.
        """
        with anyio.CancelScope() as self._flapping:
            while times > 0:
                self.cut()
                await anyio.sleep(down_s)
                self._open_gates()
                times -= 1
                if times > 0:
                    await anyio.sleep(up_s)
        self._flapping = None

    def heal(self, *, reset: bool = False) -> None:
        """End cutting, refusing and flapping; slowness stays.

        What waited comes through. `reset`: instead all lines break, as if they had been given up.
        """
        if self._flapping is not None:
            self._flapping.cancel()
        if reset:
            self.reset()
        self._refuses = False
        self._open_gates()

    def _open_gates(self) -> None:
        for gate in self._gates.values():
            gate.open()

    # Lines --------------------------------------------------------------------------------------

    async def serve(self, near: anyio.abc.SocketStream) -> None:
        """One line, from its beginning to its end."""
        self.begun += 1
        line = _Line(near)
        self._lines.add(line)
        try:
            with line.scope:
                if self._refuses:
                    line.reset()
                    return
                # A line is made with packets both ways.
                for gate in self._gates.values():
                    await gate.passed()
                await self._join(line)
        finally:
            self._lines.discard(line)
            with anyio.CancelScope(shield=True):
                await line.close()

    async def _join(self, line: _Line) -> None:
        try:
            line.far = await anyio.connect_tcp(*self.target)
        except OSError:
            line.reset()  # nobody is there, and whoever asked is told
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pass_on, line, line.near, line.far, "there")
            tasks.start_soon(self._pass_on, line, line.far, line.near, "back")

    async def _pass_on(
        self, line: _Line, source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream, way: Way
    ) -> None:
        """One direction: chunks are read as they come, and sent on when they are due."""
        road = _Road()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._deliver, line, road, sink, way)
            data = b"?"
            while data:
                try:
                    data = await source.receive(CHUNK_BYTES)
                except anyio.EndOfStream:
                    data = b""
                except _BROKEN:
                    await self._gates[way].passed()
                    line.reset()
                    return
                takes_s = self._slowness.of_chunk(self._chance)
                await road.put(anyio.current_time() + takes_s, data)

    async def _deliver(
        self, line: _Line, road: _Road, sink: anyio.abc.SocketStream, way: Way
    ) -> None:
        data = b"?"
        while data:
            due, data = await road.take()
            await anyio.sleep_until(due)
            await self._gates[way].passed()
            try:
                if data:
                    await sink.send(data)
                else:
                    await sink.send_eof()
            except _BROKEN:
                # The other end has gone; its sender hears of it when the way back is free.
                await self._gates["back" if way == "there" else "there"].passed()
                line.reset()
                return
            self.passed_bytes[way] += len(data)


class _Road:
    """What is under way in one direction: chunks with the time at which they are due, in order."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._size_bytes = 0
        self._last_due = 0.0
        self._changed = anyio.Event()

    async def put(self, due: float, data: bytes) -> None:
        """Add a chunk; none overtakes another. Waits while there are too many bytes."""
        while self._size_bytes >= UNDER_WAY_BYTES:
            await self._changed.wait()
        self._last_due = max(self._last_due, due)
        self._chunks.append((self._last_due, data))
        self._size_bytes += len(data)
        self._tell()

    async def take(self) -> tuple[float, bytes]:
        """The next chunk, and when it is due."""
        while not self._chunks:
            await self._changed.wait()
        due, data = self._chunks.popleft()
        self._size_bytes -= len(data)
        self._tell()
        return due, data

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


class _Line:
    """The two ends of one connection."""

    def __init__(self, near: anyio.abc.SocketStream) -> None:
        self.near = near
        self.far: anyio.abc.SocketStream | None = None
        self.scope = anyio.CancelScope()
        self._is_reset = False

    def reset(self) -> None:
        """Break it, so that both ends see an error rather than an end."""
        self._is_reset = True
        self.scope.cancel()

    async def close(self) -> None:
        for end in (self.near, self.far):
            if end is None:
                continue
            if self._is_reset:
                raw = end.extra(anyio.abc.SocketAttribute.raw_socket)
                # Closing at once, with what was not sent thrown away, is what sends a RST.
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await anyio.aclose_forcefully(end)
            else:
                await end.aclose()


@asynccontextmanager
async def proxied(target: int | str, *, seed: int = 0) -> AsyncIterator[Proxy]:
    """A proxy before a server of loopback: its port, or a URL that ends with it."""
    port = target if isinstance(target, int) else int(target.rpartition(":")[2])
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        own_port = listener.extra(anyio.abc.SocketAttribute.local_port)
        proxy = Proxy(own_port, ("127.0.0.1", port), random.Random(seed))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, proxy.serve)
            try:
                yield proxy
            finally:
                tasks.cancel_scope.cancel()
