"""Strict sets through one server, one after the other and many at a time, and who sees them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from benchmarks import outcome, peers, rounds
from benchmarks.network import nodes, stage
from benchmarks.network import sizes as network_sizes
from benchmarks.network.stage import ETCD, NATS, OURS, REDIS


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
    return outcome.Figure(
        what=what,
        unit=unit,
        ours=series.median(OURS),
        peers={name: series.median(name) for name in series if name != OURS},
        aim=aim,
        ratio=rounds.spread(series[OURS], series[NATS]) if NATS in series else None,
        note=note,
    )
