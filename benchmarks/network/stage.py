"""Everybody who takes part in a benchmark of writes, ready to be called. Used by `writing`.

All are connected to the node that leads the streams; those who look on, to the last one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.abc

from benchmarks import entries, peers
from benchmarks.network import nodes, rivals
from moat_kv import Client
from moat_kv.client import results
from moat_kv.path import Path

OURS, NATS, ETCD, REDIS = "moat-kv", "nats-py", "etcd", "Redis"
#: How many entries are written over and over again.
PATHS = 1_000


@dataclass(frozen=True, kw_only=True)
class Stage:
    server: peers.RunningServer
    nats: list[int]
    """The process ids of the nodes."""
    client: Client
    bare: nodes.BareClient
    etcd: rivals.Etcd | None
    redis: rivals.Redis | None
    paths: list[Path]

    async def set(self, number: int) -> None:
        """A strict set of ours."""
        await self.client.set(self.paths[number % PATHS], entries.VALUE, strict=True)

    async def publish(self, number: int) -> None:
        await self.bare.publish(number % PATHS)


class Onlooker:
    """Watches through a server of its own."""

    def __init__(self) -> None:
        self._seen = anyio.Event()
        self._seen_at = 0.0

    async def watch(self, client: Client, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with client.watch(entries.BASE, fetch=True) as events:
            async for event in events:
                if isinstance(event, results.Ready):
                    task_status.started()
                    continue
                self._seen_at = time.perf_counter()
                self._seen.set()

    async def change(self, on: Stage, number: int) -> float:
        """Set an entry; how long it takes until it is seen here, in seconds."""
        self._seen = anyio.Event()
        began = time.perf_counter()
        await on.set(number)
        await self._seen.wait()
        return self._seen_at - began


@asynccontextmanager
async def set_up(place: peers.Place, replicas: int) -> AsyncIterator[Stage]:
    """Start everybody on NATS of so many nodes. Redis is one process, and is there if they are."""
    async with AsyncExitStack() as stack:
        running = stack.enter_context(nodes.nodes(place, replicas))
        bare = await stack.enter_async_context(nodes.bare_client(running[0]))
        await bare.make_stream(replicas)
        server = stack.enter_context(place.server(engine=nodes.url(running[0])))
        if replicas > 1:
            for stream in (nodes.BARE, f"moat-{nodes.NETWORK}"):
                await bare.have_lead(stream, running[0])
        async with server.client() as client:
            yield Stage(
                server=server,
                nats=[node.pid for node in running],
                client=client,
                bare=bare,
                etcd=await stack.enter_async_context(rivals.etcd(place, replicas)),
                redis=await stack.enter_async_context(_redis(place, replicas)),
                paths=entries.paths(PATHS),
            )


@asynccontextmanager
async def _redis(place: peers.Place, replicas: int) -> AsyncIterator[rivals.Redis | None]:
    if replicas > 1:
        yield None
        return
    async with rivals.redis(place) as redis:
        yield redis


@asynccontextmanager
async def set_up_onlookers(
    place: peers.Place, replicas: int
) -> AsyncIterator[tuple[Stage, Onlooker, nodes.BareClient]]:
    """As `set_up`, with who looks on through a second server, and through a second bare client."""
    async with AsyncExitStack() as stack:
        running = stack.enter_context(nodes.nodes(place, replicas))
        bare = await stack.enter_async_context(nodes.bare_client(running[0]))
        other_bare = await stack.enter_async_context(nodes.bare_client(running[-1]))
        await bare.make_stream(replicas)
        server = stack.enter_context(place.server(engine=nodes.url(running[0])))
        other = stack.enter_context(place.server(engine=nodes.url(running[-1]), name="other"))
        if replicas > 1:
            for stream in (nodes.BARE, f"moat-{nodes.NETWORK}"):
                await bare.have_lead(stream, running[0])
        await other_bare.listen()
        etcd = await stack.enter_async_context(rivals.etcd(place, replicas))
        client = await stack.enter_async_context(server.client())
        watching = await stack.enter_async_context(other.client())
        tasks = await stack.enter_async_context(anyio.create_task_group())
        onlooker = Onlooker()
        await tasks.start(onlooker.watch, watching)
        if etcd is not None:
            await tasks.start(etcd.watch)
        on = Stage(
            server=server,
            nats=[node.pid for node in running],
            client=client,
            bare=bare,
            etcd=etcd,
            redis=None,
            paths=entries.paths(PATHS),
        )
        yield on, onlooker, other_bare
        tasks.cancel_scope.cancel()
