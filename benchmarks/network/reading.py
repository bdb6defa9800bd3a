"""Who loads a tree, who catches up, and what a call costs as the tree grows."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from benchmarks import entries, outcome, peers, rounds
from benchmarks.network import nodes, writing
from benchmarks.network import sizes as network_sizes
from benchmarks.network.stage import NATS, OURS
from moat_kv import Client
from moat_kv.testing import nats as testing_nats

#: How long a newcomer may take, in seconds, by how many entries there are.
NEWCOMER_S = {100_000: 6.0, 1_000_000: 75.0}
#: At most so many rounds of what takes long, and one of what takes very long.
LONG_ROUNDS = 3
ONCE_ABOVE = 200_000
_LOOK_S = 0.01
#: A server is at rest when it takes less of a core than that; by then it must be, in seconds.
AT_REST = 0.1
REST_LIMIT_S = 120.0
#: What is taken for a time that is too short to be told from noise, in seconds.
LEAST_S = 0.001


async def newcomer(place: peers.Place, sizes: network_sizes.Sizes) -> list[outcome.Figure]:
    """From the start of a server without anything until it serves the whole tree."""
    return [await _newcomer(place, count, sizes.rounds) for count in sizes.newcomers]


async def _newcomer(place: peers.Place, count: int, most_rounds: int) -> outcome.Figure:
    memory: list[float] = []
    async with _filled(place, [count]) as (node, bare):

        async def ours() -> float:
            with place.server(engine=nodes.url(node, f"n{count}")) as server:
                memory.append(server.memory_bytes())
                return server.started_in_s

        async def plain() -> float:
            began = time.perf_counter()
            await bare.read_all(f"n{count}", count)
            return time.perf_counter() - began

        times = LONG_ROUNDS if count <= ONCE_ABOVE else 1
        series = await rounds.alternate(
            {OURS: ours, NATS: plain}, min(most_rounds, times), warm_up=False
        )
        with place.server(engine=nodes.url(node, "empty")) as server:
            empty = server.memory_bytes()
    size = rounds.median(memory)
    note = (
        f"the server has {size / 2**20:.0f} MiB then, {(size - empty) / count:.0f} bytes an entry "
        f"more than without any; nats-py hands each message to a function that counts"
    )
    limit, seconds = NEWCOMER_S.get(count), series.median(OURS)
    aim = None
    if limit is not None:
        aim = outcome.Aim(text=f"at most {limit:.0f} s", value=seconds, limit=limit, unit="s")
    return writing.figure(f"newcomer, {count:,} entries", "s", series, aim, note)


async def behind(place: peers.Place, sizes: network_sizes.Sizes) -> list[outcome.Figure]:
    """Records a second that a server takes which was down while others wrote."""
    count = sizes.behind
    async with _filled(place, [count]) as (node, bare):
        network = f"n{count}"
        data = place.new("data")
        with place.server(engine=nodes.url(node, network), data=data):
            pass

        async def start() -> float:
            """Seconds until a server with that copy has everything."""
            began = time.perf_counter()
            with place.server(engine=nodes.url(node, network), data=data) as server:
                async with server.client() as client:
                    await _have_all(client)
                return time.perf_counter() - began

        async def ours() -> float:
            unhurried = await start()
            await bare.fill(network, count)
            return count / max(LEAST_S, await start() - unhurried)

        async def plain() -> float:
            began = time.perf_counter()
            await bare.read_all(network, count)
            return count / (time.perf_counter() - began)

        series = await rounds.alternate(
            {OURS: ours, NATS: plain}, min(sizes.rounds, LONG_ROUNDS), warm_up=False
        )
    note = f"{count:,} records missed; the time of a start with nothing missed is taken off"
    return [writing.figure("catching up", "1/s", series, None, note)]


async def _have_all(client: Client) -> None:
    """Wait until its server is in touch, which it is when it has applied everything."""
    while not (await client.state())["engine"]["attached"]:  # noqa: ASYNC110  # nobody tells
        await anyio.sleep(_LOOK_S)


async def _at_rest(server: peers.RunningServer) -> None:
    """Wait until it has kept its own copy of what it has loaded, too."""
    with anyio.fail_after(REST_LIMIT_S):
        used, before = AT_REST, server.cpu_s()
        while used >= AT_REST:
            await anyio.sleep(1)
            now = server.cpu_s()
            used, before = now - before, now


async def tree(place: peers.Place, sizes: network_sizes.Sizes) -> list[outcome.Figure]:
    """What a strict set and a get take in trees of different sizes, in turns."""
    async with _filled(place, sizes.trees) as (node, _), AsyncExitStack() as stack:
        sets, gets = {}, {}
        for count in sizes.trees:
            server = stack.enter_context(place.server(engine=nodes.url(node, f"n{count}")))
            await _at_rest(server)
            client = await stack.enter_async_context(server.client())
            sets[str(count)] = _sets(client, count, sizes.calls)
            gets[str(count)] = _gets(client, count, sizes.calls)
        results = {
            "strict set": await rounds.alternate(sets, sizes.rounds),
            "get": await rounds.alternate(gets, sizes.rounds),
        }
    figures = []
    smallest = str(sizes.trees[0])
    for what, series in results.items():
        for count in sizes.trees:
            ratio = rounds.spread(series[str(count)], series[smallest])
            figures.append(
                outcome.Figure(
                    what=f"{what}, tree of {count:,}",
                    unit="s",
                    ours=series.median(str(count)),
                    note=f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) times that in "
                    f"a tree of {sizes.trees[0]:,}",
                )
            )
    return figures


def _sets(client: Client, count: int, calls: int) -> rounds.Round:
    step = max(1, count // 997)

    async def call(number: int) -> None:
        path = entries.path(number * step % count)
        await client.set(path, entries.VALUE, strict=True)

    return lambda: rounds.round_trip(call, calls)


def _gets(client: Client, count: int, calls: int) -> rounds.Round:
    step = max(1, count // 997)

    async def call(number: int) -> None:
        await client.get(entries.path(number * step % count))

    return lambda: rounds.round_trip(call, calls)


@asynccontextmanager
async def _filled(
    place: peers.Place, counts: list[int] | tuple[int, ...]
) -> AsyncIterator[tuple[testing_nats.Node, nodes.BareClient]]:
    """A node with a network for each count, of so many entries; it syncs every two minutes."""
    async with AsyncExitStack() as stack:
        (node,) = stack.enter_context(nodes.nodes(place, 1, sync=False))
        bare = await stack.enter_async_context(nodes.bare_client(node))
        for count in counts:
            with place.server(engine=nodes.url(node, f"n{count}")):
                pass  # it has made the network
            await bare.fill(f"n{count}", count)
        yield node, bare
