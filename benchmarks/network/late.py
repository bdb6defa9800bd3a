"""What clients of a server notice while nobody acknowledges: the leading NATS node is killed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import anyio

from benchmarks import entries, outcome, peers, rounds
from benchmarks.network import nodes
from benchmarks.network import sizes as network_sizes
from moat_kv import Client, errors
from moat_kv.testing import nats as testing_nats

#: Time between a client's calls, in seconds.
PAUSE_S = 0.005


class Caller:
    """Calls one after the other; for each, when it was made and how long it took."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float]] = []
        self.pending = 0

    async def get(self, client: Client) -> None:
        while True:
            for number in range(100):
                began = time.perf_counter()
                await client.get(entries.path(number))
                self.calls.append((began, time.perf_counter() - began))
                await anyio.sleep(PAUSE_S)

    async def set(self, client: Client) -> None:
        while True:
            for number in range(100):
                began = time.perf_counter()
                result = await client.set(entries.path(number), entries.VALUE)
                self.calls.append((began, time.perf_counter() - began))
                self.pending += result.pending
                await anyio.sleep(PAUSE_S)

    def took(self, since: float, until: float) -> list[float]:
        return [seconds for began, seconds in self.calls if since <= began < until] or [0.0]


@dataclass
class Found:
    """What came of each kill, in seconds."""

    before: list[float] = field(default_factory=list)
    """The median get before it."""
    during: list[float] = field(default_factory=list)
    """The median get until a strict set came through."""
    slowest: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    """The slowest answer to a plain set."""
    gaps: list[float] = field(default_factory=list)
    """When a strict set came through."""
    pending: int = 0

    def figures(self, sizes: network_sizes.Sizes) -> list[outcome.Figure]:
        return [
            outcome.Figure(
                what="get while NATS does not acknowledge",
                unit="s",
                ours=rounds.median(self.during),
                note=(
                    f"the slowest took {max(self.slowest) * 1e3:.1f} ms; the median before was "
                    f"{rounds.median(self.before) * 1e6:.0f} µs; the leading one of "
                    f"{sizes.kill_nodes} NATS nodes was killed {sizes.kills} times, a strict set "
                    f"came through {min(self.gaps):.1f} to {max(self.gaps):.1f} s later"
                ),
            ),
            outcome.Figure(
                what="plain set then, the slowest answer",
                unit="s",
                ours=max(self.answers),
                note=f"{self.pending} were answered `pending`",
            ),
        ]


async def late(place: peers.Place, sizes: network_sizes.Sizes) -> list[outcome.Figure]:
    """Plain gets and sets through a server while its stream has no leader."""
    found = Found()
    async with AsyncExitStack() as stack:
        running = stack.enter_context(nodes.nodes(place, sizes.kill_nodes))
        # The server is on a node that stays; clients are on lines of their own.
        server = stack.enter_context(place.server(engine=nodes.url(running[0])))
        asking = await stack.enter_async_context(nodes.bare_client(running[0]))
        clients = [await stack.enter_async_context(server.client()) for _ in range(3)]
        await clients[0].set(entries.path(0), entries.VALUE)
        for number in range(sizes.kills):
            victim = running[-1 - number % max(1, len(running) - 1)]
            if len(running) > 1:
                await asking.have_lead(f"moat-{nodes.NETWORK}", victim)
            reads, writes = Caller(), Caller()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(reads.get, clients[0])
                tasks.start_soon(writes.set, clients[1])
                begun = time.perf_counter()
                await anyio.sleep(min(2.0, sizes.kill_s))
                killed = time.perf_counter()
                await _silence(victim, sizes)
                await _until_stored(clients[2])
                gap_s = time.perf_counter() - killed
                await anyio.sleep(max(0.0, sizes.kill_s - gap_s))
                tasks.cancel_scope.cancel()
            if len(running) > 1:
                await anyio.to_thread.run_sync(_restart, victim, running)
            found.before.append(rounds.median(reads.took(begun, killed)))
            waiting = reads.took(killed, killed + gap_s)
            found.during.append(rounds.median(waiting))
            found.slowest.append(max(waiting))
            found.answers.append(max(writes.took(killed - 1, killed + sizes.kill_s)))
            found.gaps.append(gap_s)
            found.pending += writes.pending
    return found.figures(sizes)


async def _silence(victim: testing_nats.Node, sizes: network_sizes.Sizes) -> None:
    if sizes.kill_nodes > 1:
        await anyio.to_thread.run_sync(victim.kill)
        return
    victim.freeze()
    try:
        await anyio.sleep(sizes.kill_s)
    finally:
        victim.thaw()


async def _until_stored(client: Client) -> None:
    """Write until a strict write comes through."""
    while True:
        try:
            await client.set(entries.path(1), entries.VALUE, strict=True)
            return
        except (errors.Detached, errors.Unknown):
            await anyio.sleep(PAUSE_S)


def _restart(victim: testing_nats.Node, running: Sequence[testing_nats.Node]) -> None:
    victim.start()
    testing_nats.wait_for_all(running)
