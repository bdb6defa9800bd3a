"""Single calls: a get and a durable set, one after the other and many at a time."""

from __future__ import annotations

from benchmarks import outcome, peers, rounds, stage
from benchmarks.stage import ECHO, OURS, REDIS, SQLITE


async def get(place: peers.Place) -> list[outcome.Figure]:
    """Round trip of a get."""
    calls = place.scale.calls
    async with stage.set_up(place) as on:
        contestants: dict[str, rounds.Round] = {
            OURS: lambda: rounds.round_trip(on.get, calls),
            ECHO: lambda: rounds.round_trip(on.echo_call, calls),
        }
        if on.redis is not None:
            contestants[REDIS] = lambda: rounds.round_trip(on.redis_get, calls)
        series = await rounds.alternate(contestants, place.scale.rounds)
    aim = outcome.Aim(
        text="within 1.5 times of the echo's round trip",
        value=series.ratio(OURS, ECHO),
        limit=1.5,
    )
    return [figure("get, round trip", "s", series, original=0.8e-3, aim=aim)]


async def set_(place: peers.Place) -> list[outcome.Figure]:
    """Round trip of a durable set."""
    calls = place.scale.calls
    async with stage.set_up(place) as on:
        contestants: dict[str, rounds.Round] = {
            OURS: lambda: rounds.round_trip(on.set, calls),
            ECHO: lambda: rounds.round_trip(on.echo_call, calls),
            SQLITE: lambda: on.commit_time(calls),
        }
        if on.redis is not None:
            contestants[REDIS] = lambda: rounds.round_trip(on.redis_set, calls)
        series = await rounds.alternate(contestants, place.scale.rounds)
    both = rounds.median(
        ours / (echo + commit)
        for ours, echo, commit in zip(series[OURS], series[ECHO], series[SQLITE], strict=True)
    )
    note = f"{both:.2f} times the echo's round trip and a commit of bare SQLite together"
    return [figure("set, round trip", "s", series, original=2.1e-3, note=note)]


async def gets(place: peers.Place) -> list[outcome.Figure]:
    """Gets a second with several in flight."""
    scale = place.scale
    async with stage.set_up(place) as on:
        contestants: dict[str, rounds.Round] = {
            OURS: lambda: rounds.rate(on.get, scale.flight_calls, scale.in_flight),
            ECHO: lambda: rounds.rate(on.echo_call, scale.flight_calls, scale.in_flight),
        }
        if on.redis is not None:
            contestants[REDIS] = lambda: rounds.rate(
                on.redis_get, scale.flight_calls, scale.in_flight
            )
        series = await rounds.alternate(contestants, scale.rounds)
    aim = outcome.Aim(
        text="at least half of the echo's rate",
        value=series.ratio(OURS, ECHO),
        limit=0.5,
        at_least=True,
    )
    what = f"gets, {scale.in_flight} in flight"
    return [figure(what, "1/s", series, original=1650, aim=aim)]


async def sets(place: peers.Place) -> list[outcome.Figure]:
    """Durable sets a second with several in flight."""
    scale = place.scale
    commits = max(1, scale.flight_calls // scale.in_flight)
    async with stage.set_up(place) as on:
        contestants: dict[str, rounds.Round] = {
            OURS: lambda: rounds.rate(on.set, scale.flight_calls, scale.in_flight),
            ECHO: lambda: rounds.rate(on.echo_call, scale.flight_calls, scale.in_flight),
            SQLITE: lambda: on.commit_rate(scale.in_flight, commits),
        }
        if on.redis is not None:
            contestants[REDIS] = lambda: rounds.rate(
                on.redis_set, scale.flight_calls, scale.in_flight
            )
        series = await rounds.alternate(contestants, scale.rounds)
    aim = outcome.Aim(
        text=f"at least half of what bare SQLite commits in groups of {scale.in_flight}",
        value=series.ratio(OURS, SQLITE),
        limit=0.5,
        at_least=True,
    )
    note = f"{series.ratio(OURS, ECHO):.2f} of the echo's rate, where nothing is written"
    what = f"sets, {scale.in_flight} in flight"
    return [figure(what, "1/s", series, original=830, aim=aim, note=note)]


def figure(
    what: str,
    unit: str,
    series: rounds.Series,
    *,
    original: float | None = None,
    aim: outcome.Aim | None = None,
    note: str = "",
) -> outcome.Figure:
    """The medians of all contestants."""
    return outcome.Figure(
        what=what,
        unit=unit,
        ours=series.median(OURS),
        peers={name: series.median(name) for name in series if name != OURS},
        original=original,
        aim=aim,
        note=note,
    )
