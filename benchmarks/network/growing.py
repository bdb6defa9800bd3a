"""More and more servers, more and more clients: what each costs, and where it bends.

All on one machine, which is what bends first: the figures say what a machine has to have, not how
many it can do with a network between them. Linux only (`/proc`).
"""

from __future__ import annotations

import contextlib
import pathlib
import resource
import time
from contextlib import AsyncExitStack

import anyio
import anyio.abc

from benchmarks import entries, outcome, peers, rounds
from benchmarks.network import nodes
from benchmarks.network import sizes as network_sizes
from moat_kv import Client
from moat_kv.client import results

#: Gets in one round of all clients.
GETS = 20_000


class Group:
    """Watchers of all entries, and when the last of them has seen a change."""

    def __init__(self) -> None:
        self.size = 0
        self._missing = 0
        self._all = anyio.Event()

    async def watch(self, client: Client, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with client.watch(entries.BASE, fetch=True) as events:
            async for event in events:
                if isinstance(event, results.Ready):
                    self.size += 1
                    task_status.started()
                    continue
                self._missing -= 1
                if not self._missing:
                    self._all.set()

    async def change(self, client: Client, number: int) -> float:
        """Set an entry; how long until all have seen it, in seconds."""
        self._missing, self._all = self.size, anyio.Event()
        began = time.perf_counter()
        await client.set(entries.path(number), entries.VALUE, strict=True)
        await self._all.wait()
        return time.perf_counter() - began


async def servers(place: peers.Place, sizes: network_sizes.Sizes) -> list[outcome.Figure]:
    """What a server costs, with ever more of them in one network on this machine."""
    figures = []
    async with AsyncExitStack() as stack:
        (node,) = stack.enter_context(nodes.nodes(place, 1))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        running: list[peers.RunningServer] = []
        clients: list[Client] = []
        group = Group()
        for count in sizes.servers:
            while len(running) < count:
                name = f"s{len(running)}"
                server = stack.enter_context(place.server(engine=nodes.url(node), name=name))
                running.append(server)
                client = await stack.enter_async_context(server.client())
                clients.append(client)
                await tasks.start(group.watch, client)
            figures.append(await _of_servers(node.pid, running, clients[0], group, sizes))
        tasks.cancel_scope.cancel()
    return figures


async def _of_servers(
    nats: int,
    running: list[peers.RunningServer],
    client: Client,
    group: Group,
    sizes: network_sizes.Sizes,
) -> outcome.Figure:
    count = len(running)
    idle = await _idle([server.pid for server in running], sizes.idle_s)
    nats_idle = await _idle([nats], sizes.idle_s)
    sets = rounds.median([await _timed(client, number) for number in range(sizes.calls)])
    before, nats_before = sum(server.cpu_s() for server in running[1:]), peers.cpu_s(nats)
    seen = rounds.median([await group.change(client, number) for number in range(sizes.calls)])
    follower_s = sum(server.cpu_s() for server in running[1:]) - before
    nats_each = (peers.cpu_s(nats) - nats_before) / sizes.calls
    each = follower_s / max(1, count - 1) / sizes.calls
    memory = rounds.median([_own_bytes(server.pid) for server in running])
    return outcome.Figure(
        what=f"{count} server{'s' if count > 1 else ''}: change seen on all",
        unit="s",
        ours=seen,
        note=(
            f"a strict set takes {sets * 1e3:.2f} ms; a server has {memory / 2**20:.0f} MiB of its "
            f"own and, idle, {idle / count:.2%} of a core; NATS {nats_idle:.1%}; a record costs "
            f"each server that follows, with one watcher, {each * 1e6:.0f} µs of processor, and "
            f"NATS {nats_each * 1e6:.0f} µs"
        ),
    )


async def clients(place: peers.Place, sizes: network_sizes.Sizes) -> list[outcome.Figure]:
    """What a client and a watcher cost a server, with ever more of them on one."""
    _allow_files(max(sizes.clients))
    figures = []
    async with AsyncExitStack() as stack:
        (node,) = stack.enter_context(nodes.nodes(place, 1))
        server = stack.enter_context(place.server(engine=nodes.url(node)))
        first = await stack.enter_async_context(server.client())
        await _load(first)
        for count in sizes.clients:
            figures += await _of_clients(server, first, count, sizes)
    return figures


async def _load(client: Client) -> None:
    """The entries that the clients read."""
    await client.batch([client.op_set(entries.path(n), entries.VALUE) for n in range(100)])


async def _of_clients(
    server: peers.RunningServer, first: Client, count: int, sizes: network_sizes.Sizes
) -> list[outcome.Figure]:
    group = Group()
    async with AsyncExitStack() as stack:
        before = server.memory_bytes()
        lines = await _connect(stack, server, count)
        connected = server.memory_bytes()
        idle = await _idle([server.pid], sizes.idle_s)

        async def get(number: int) -> None:
            await lines[number % count].get(entries.path(number % 100))

        in_flight = min(count, sizes.in_flight)
        rate = await rounds.rate(get, min(GETS, sizes.flight_calls * 4), in_flight)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for line in lines:
            await tasks.start(group.watch, line)
        watching = server.memory_bytes()
        times = max(3, min(sizes.calls, 5_000 // count))
        cpu = server.cpu_s()
        seen = rounds.median([await group.change(first, number) for number in range(times)])
        each = (server.cpu_s() - cpu) / times / count
        tasks.cancel_scope.cancel()
    return [
        outcome.Figure(
            what=f"{count:,} clients: gets, {in_flight} in flight",
            unit="1/s",
            ours=rate,
            note=(
                f"a connected client takes {max(0.0, connected - before) / count / 1024:.1f} KiB "
                f"of the server; idle, all together {idle:.1%} of a core"
            ),
        ),
        outcome.Figure(
            what=f"{count:,} watchers: change seen by all",
            unit="s",
            ours=seen,
            note=(
                f"a watcher takes {max(0.0, watching - connected) / count / 1024:.1f} KiB of the "
                f"server, and of each change {each * 1e6:.1f} µs of its processor; the watchers "
                "themselves, all in one process, take the rest"
            ),
        ),
    ]


async def _connect(stack: AsyncExitStack, server: peers.RunningServer, count: int) -> list[Client]:
    return [await stack.enter_async_context(server.client()) for _ in range(count)]


async def _idle(pids: list[int], seconds: float) -> float:
    """How much of a core these processes take while nothing happens, all together."""
    await anyio.sleep(min(1.0, seconds))  # what came before is over
    before = sum(peers.cpu_s(pid) for pid in pids)
    await anyio.sleep(seconds)
    return (sum(peers.cpu_s(pid) for pid in pids) - before) / seconds


async def _timed(client: Client, number: int) -> float:
    began = time.perf_counter()
    await client.set(entries.path(number), entries.VALUE, strict=True)
    return time.perf_counter() - began


def _own_bytes(pid: int) -> int:
    """Memory that a process shares with no other one."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Pss in smaps_rollup")


def _allow_files(clients: int) -> None:
    """So many lines need a file each here and in the server, which has our limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * clients + 1_000
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
