"""Who is busy at a server while `client_faults` goes on: writers, watchers, members of a group."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from moat_kv import Client, P, Path, errors
from moat_kv.client import results
from moat_kv.client.session import Session

DATA = P("data")
GROUP = P("group")
OWNED = P("owned.entry")
#: What must come about by itself does so within so many seconds.
LIMIT_S = 30.0


async def until(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until an awaited condition holds. Raises AssertionError that names it."""
    with anyio.move_on_after(LIMIT_S):
        while not await condition():
            await anyio.sleep(0.02)
        return
    raise AssertionError(f"{what}: not within {LIMIT_S:g} s")


async def has_value(client: Client, path: Path) -> bool:
    return "value" in await client.get(path)


class Follower:
    """What a watch has told so far, put together."""

    def __init__(self) -> None:
        self.state: dict[Path, Any] = {}
        self.resets = 0

    async def follow(self, client: Client) -> None:
        async with client.watch(DATA, fetch=True) as changes:
            async for event in changes:
                if isinstance(event, results.Reset):
                    self.resets += 1
                    self.state.clear()
                elif isinstance(event, results.WatchEvent):
                    if "value" in event:
                        self.state[event.path] = event.value
                    else:
                        self.state.pop(event.path, None)


class Writer:
    """Sets and deletes, as far as there is a line, until it is told to stop."""

    def __init__(self) -> None:
        self.answered = 0
        self.stopped = False
        self.ended = anyio.Event()

    async def write(self, client: Client) -> None:
        number = 0
        while not self.stopped:
            number += 1
            path = DATA / (number % 40)
            try:
                if number % 7:
                    await client.set(path, number)
                else:
                    await client.delete(path)
                self.answered += 1
            except (errors.Disconnected, errors.Unknown):
                await anyio.sleep(0.01)
        self.ended.set()


@asynccontextmanager
async def member(client: Client, **times: float) -> AsyncIterator[Session]:
    """In a session that owns an entry and is in the group."""
    async with client.session(**times) as session:
        await client.set(OWNED, "mine", session=session)
        await client.join(GROUP, "n1", session=session, info={"load": 1})
        yield session
