"""Everybody who takes part in a benchmark of single calls, ready to be called.

Used by `calls` and `watching`: one server of ours with some entries, an echo server, a bare SQLite
log, and Redis where it is installed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass

import anyio

from benchmarks import bare, echo, entries, peers, resp, rounds
from moat_kv import Client, codec
from moat_kv.path import Path

OURS, ECHO, SQLITE, REDIS = "moat-kv", "echo", "SQLite", "Redis"
#: Writes in one batch while entries are loaded, and batches that are under way at a time.
BATCH = 1_000
LOADERS = 4
#: Bare SQLite rests for so long between single commits, as our server does between single sets.
RHYTHM_S = 0.0004


@dataclass(frozen=True, kw_only=True)
class Stage:
    server: peers.RunningServer
    client: Client
    echo: echo.EchoClient
    log: bare.BareLog
    redis: resp.RedisClient | None
    paths: list[Path]

    # One call each; the number says which entry -------------------------------------------------

    async def get(self, number: int) -> None:
        await self.client.get(self.paths[number % len(self.paths)])

    async def set(self, number: int) -> None:
        await self.client.set(self.paths[number % len(self.paths)], entries.VALUE)

    async def echo_call(self, number: int) -> None:
        """Takes and returns what a get returns, decoded as far."""
        answer = await self.echo.call("get", {"path": "house0.sensor0"}, entries.PACKED)
        codec.unpack(answer[3])

    async def redis_get(self, number: int) -> None:
        assert self.redis is not None
        await self.redis.call(b"GET", b"entry%d" % (number % len(self.paths)))

    async def redis_set(self, number: int) -> None:
        assert self.redis is not None
        key = b"entry%d" % (number % len(self.paths))
        await self.redis.call(b"SET", key, codec.pack(entries.VALUE))

    async def commit_time(self, commits: int) -> float:
        """The median time of a bare SQLite commit of one row, in seconds.

        They come in the rhythm of a client that waits for its answer each time: a disk that has
        just been used is quicker.
        """
        times = []
        for _ in range(commits):
            rows = self.log.rows(1)
            time.sleep(RHYTHM_S)  # noqa: ASYNC251  # nothing else is to happen
            times.append(self.log.commit(rows))
        return rounds.median(times)

    async def commit_rate(self, size: int, commits: int) -> float:
        """How many rows a second bare SQLite writes in commits of that size."""
        return size * commits / sum(self.log.commit(self.log.rows(size)) for _ in range(commits))


@asynccontextmanager
async def set_up(place: peers.Place, *, engine: str = "sqlite") -> AsyncIterator[Stage]:
    """Start everybody, and store the entries with each of those who keep any."""
    async with AsyncExitStack() as stack:
        running = stack.enter_context(place.server(engine=engine))
        client = await stack.enter_async_context(running.client())
        stage = Stage(
            server=running,
            client=client,
            echo=await stack.enter_async_context(place.echo()),
            log=stack.enter_context(closing(bare.BareLog(place.new("bare")))),
            redis=await stack.enter_async_context(place.redis()),
            paths=entries.paths(place.scale.paths),
        )
        await load(client, place.scale.paths)
        if stage.redis is not None:
            for number in range(place.scale.paths):
                await stage.redis_set(number)
        yield stage


async def load(client: Client, count: int) -> None:
    """Write so many entries through `batch`."""
    starts = iter(range(0, count, BATCH))

    async def loader() -> None:
        for start in starts:
            numbers = range(start, min(start + BATCH, count))
            await client.batch(
                [client.op_set(entries.path(number), entries.VALUE) for number in numbers]
            )

    async with anyio.create_task_group() as tasks:
        for _ in range(LOADERS):
            tasks.start_soon(loader)
