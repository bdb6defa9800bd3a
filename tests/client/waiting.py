"""Waiting for what must come, with a limit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

from moat_kv import Client, open_client
from moat_kv.testing.server import RunningServer, running_server

LIMIT_S = 30.0


async def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives, as soon as that is true."""
    with anyio.fail_after(LIMIT_S):
        while True:
            found = condition()
            if found:
                return found
            await anyio.sleep(0.005)


async def others_wait() -> None:
    """Until tasks that wait for nothing but a turn have come as far as they can.

    Where a server runs in the same loop, `anyio.wait_all_tasks_blocked` may take long: on asyncio
    it looks at times that are in step with a server's own.
    """
    for _ in range(100):
        await anyio.lowlevel.checkpoint()


async def take(events: Any, count: int = 1) -> list[Any]:
    """The next so many of an async iterator."""
    with anyio.fail_after(LIMIT_S):
        return [await events.__anext__() for _ in range(count)]


@asynccontextmanager
async def both(**options: Any) -> AsyncIterator[tuple[RunningServer, Client]]:
    """A server, and a client connected to it."""
    async with running_server() as running, open_client(running.url, **options) as client:
        yield running, client
