"""What tests of busy, large and hostile clients share: a held engine, figures that settle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel

from moat_kv.engine.base import Done
from moat_kv.engine.memory import MemoryEngine
from moat_kv.entry import Write
from moat_kv.proto import messages
from moat_kv.proto.messages import State
from moat_kv.server.connection import Connection
from moat_kv.testing.server import RunningServer
from tests.line import Line

MIB = 1024 * 1024


class HeldEngine(MemoryEngine):
    """Keeps what is submitted to itself, as a slow disk would."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[Sequence[Write], Done]] | None = []

    def submit(self, writes: Sequence[Write], done: Done) -> None:
        if self.held is None:
            super().submit(writes, done)
        else:
            self.held.append((writes, done))

    def release(self) -> None:
        held, self.held = self.held or [], None
        for writes, done in held:
            super().submit(writes, done)


def only_connection(running: RunningServer) -> Connection:
    (found,) = running.server.connections
    return found


async def settled(number: Any) -> Any:
    """What a figure of the server stays at for a while."""
    with anyio.fail_after(30):
        seen = number()
        while True:
            await anyio.sleep(0.1)
            if (now := number()) == seen:
                return now
            seen = now


def requests(action: str, count: int, value: bytes | None = None, **arguments: Any) -> bytes:
    """Many requests, from seq 100."""
    return b"".join(
        messages.pack((seq, action, arguments, value)) for seq in range(100, 100 + count)
    )


async def answers(line: Line, count: int) -> None:
    for seq in range(100, 100 + count):
        assert (await line.next(seq)).state == State.REPLY
