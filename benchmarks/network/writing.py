"""Strict sets through one server, one after the other and many at a time, and who sees them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable

from benchmarks import calls, outcome, peers, rounds
from benchmarks.network import nodes, stage
from benchmarks.network import sizes as network_sizes
from benchmarks.network.stage import ETCD, NATS, OURS, REDIS

#: Processor times are counted in hundredths of a second; less cannot be told from nothing.
LEAST_S = 1e-9


async def set_(place: peers.Place, sizes: network_sizes.Sizes) -> list[outcome.Figure]:
    """Round trip of a strict set through one server."""
    figures = []
    for replicas in sizes.replicas:
        async with stage.set_up(place, replicas) as on:
            series = await rounds.alternate(
                _contestants(on, lambda call: rounds.round_trip(call, sizes.calls)), sizes.rounds
            )
        aim = outcome.Aim(
            text="at most 1.5 times the bare publish-and-acknowledge",
            value=series.ratio(OURS, NATS),
            limit=1.5,
        )
        figures.append(figure(f"strict set, {_copies(replicas)}", "s", series, aim))
    return figures


async def sets(place: peers.Place, sizes: network_sizes.Sizes) -> list[outcome.Figure]:
    """Strict sets a second with several in flight, over one line."""
    figures = []
    for replicas in sizes.replicas:
        async with stage.set_up(place, replicas) as on:
            series = await rounds.alternate(
                _contestants(
                    on, lambda call: rounds.rate(call, sizes.flight_calls, sizes.in_flight)
                ),
                sizes.rounds,
            )
        aim = outcome.Aim(
            text="at least 0.6 of the bare client's rate",
            value=series.ratio(OURS, NATS),
            limit=0.6,
            at_least=True,
        )
        what = f"strict sets, {sizes.in_flight} in flight, {_copies(replicas)}"
        figures.append(figure(what, "1/s", series, aim))
    return figures


async def seen(place: peers.Place, sizes: network_sizes.Sizes) -> list[outcome.Figure]:
    """From the call of set on one server to a watcher on another one."""
    figures = []
    for replicas in sizes.replicas:
        async with stage.set_up_onlookers(place, replicas) as on:
            series = await rounds.alternate(_onlookers(*on, sizes.calls), sizes.rounds)
        aim = outcome.Aim(
            text="at most 2 times the bare publish-to-subscriber",
            value=series.ratio(OURS, NATS),
            limit=2.0,
        )
        what = f"change seen on another server, {_copies(replicas)}"
        figures.append(figure(what, "s", series, aim))
    return figures


def _onlookers(
    on: stage.Stage, onlooker: stage.Onlooker, other: nodes.BareClient, calls: int
) -> dict[str, rounds.Round]:
    changes: dict[str, Callable[[int], Awaitable[float]]] = {
        OURS: lambda number: onlooker.change(on, number),
        NATS: lambda number: on.bare.change(number % stage.PATHS, other),
    }
    if on.etcd is not None:
        changes[ETCD] = on.etcd.change
    return {
        name: (lambda change=change: _median(change, calls)) for name, change in changes.items()
    }


async def cost(place: peers.Place, sizes: network_sizes.Sizes) -> list[outcome.Figure]:
    """What a strict set takes of the processors, and whose; alone and with several in flight."""
    figures = []
    for replicas in sizes.replicas:
        async with stage.set_up(place, replicas) as on:
            for in_flight, calls in ((1, sizes.calls), (sizes.in_flight, sizes.flight_calls)):
                ours, bare = Shares(on, on.set, calls), Shares(on, on.publish, calls)
                plays = {OURS: ours.play(in_flight), NATS: bare.play(in_flight)}
                series = await rounds.alternate(plays, max(1, sizes.rounds // 3))
                what = f"processor of a strict set, {in_flight} in flight, {_copies(replicas)}"
                figures.append(figure(what, "s", series, None, f"{ours}; {NATS}: {bare}"))
    return figures


class Shares:
    """Processor time of a call by who takes it, one figure a round."""

    def __init__(self, on: stage.Stage, call: rounds.Call, calls: int) -> None:
        self._on = on
        self._call = call
        self._calls = calls
        self._found: dict[str, list[float]] = {"client": [], "server": [], "NATS": []}

    def play(self, in_flight: int) -> rounds.Round:
        """A round; how many seconds a call takes of all of them together."""

        async def play() -> float:
            before = self._now()
            await rounds.rate(self._call, self._calls, in_flight)
            spent = [b - a for a, b in zip(before, self._now(), strict=True)]
            for found, seconds in zip(self._found.values(), spent, strict=True):
                found.append(seconds / self._calls)
            return max(LEAST_S, sum(spent) / self._calls)

        return play

    def _now(self) -> list[float]:
        on = self._on
        return [time.process_time(), on.server.cpu_s(), sum(peers.cpu_s(pid) for pid in on.nats)]

    def __str__(self) -> str:
        medians = {who: rounds.median(found) for who, found in self._found.items()}
        return ", ".join(f"{who} {seconds * 1e6:.0f} µs" for who, seconds in medians.items())


def _contestants(
    on: stage.Stage, play: Callable[[rounds.Call], Awaitable[float]]
) -> dict[str, rounds.Round]:
    calls: dict[str, rounds.Call] = {OURS: on.set, NATS: on.publish}
    if on.etcd is not None:
        calls[ETCD] = on.etcd.set
    if on.redis is not None:
        calls[REDIS] = on.redis.set
    return {name: (lambda call=call: play(call)) for name, call in calls.items()}


async def _median(change: Callable[[int], Awaitable[float]], calls: int) -> float:
    return rounds.median([await change(number) for number in range(calls)])


def _copies(replicas: int) -> str:
    return f"{replicas} NATS replica{'s' if replicas > 1 else ''}"


def figure(
    what: str,
    unit: str,
    series: rounds.Series,
    aim: outcome.Aim | None = None,
    note: str = "",
) -> outcome.Figure:
    """The medians of all contestants, and the ratio to bare nats-py."""
    ratio = rounds.spread(series[OURS], series[NATS]) if NATS in series else None
    made = calls.figure(what, unit, series, aim=aim, note=note)
    return dataclasses.replace(made, ratio=ratio)
