"""From a change to those who watch it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import anyio.abc

from benchmarks import calls, entries, outcome, peers, rounds, stage
from benchmarks.stage import ECHO, OURS, SQLITE
from moat_kv import Client
from moat_kv.client import results
from moat_kv.path import Path

#: Watchers are spread over at most so many lines.
LINES = 10
_PLACE = Path("bench", "watched")


class Crowd:
    """Some watchers of one entry, and when the last of them has seen its newest change."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._missing = 0
        #: When the last of them saw it, in seconds since 1970: a server's times are, too.
        self.seen_at = 0.0
        self._all = anyio.Event()

    async def watch(self, client: Client, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with client.watch(_PLACE, fetch=True) as events:
            async for event in events:
                if isinstance(event, results.Ready):
                    task_status.started()
                    continue
                self._missing -= 1
                if not self._missing:
                    self.seen_at = time.time()
                    self._all.set()

    async def change(self, client: Client) -> float:
        """Set the entry; the time from before the call until all have seen it, in seconds."""
        self._missing = self.size
        self._all = anyio.Event()
        began = time.time()
        await client.set(_PLACE, entries.VALUE)
        await self._all.wait()
        return self.seen_at - began

    async def changes(self, client: Client, count: int) -> float:
        """The median of so many changes, one after the other."""
        return rounds.median([await self.change(client) for _ in range(count)])


@asynccontextmanager
async def _crowd(server: peers.RunningServer, size: int) -> AsyncIterator[Crowd]:
    """So many watchers on lines of their own, who have seen the present state."""
    crowd = Crowd(size)
    async with AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(server.client()) for _ in range(min(size, LINES))]
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for number in range(size):
            await tasks.start(crowd.watch, lines[number % len(lines)])
        yield crowd
        tasks.cancel_scope.cancel()


async def watch(place: peers.Place) -> list[outcome.Figure]:
    """From a change to one watcher on a line of its own."""
    count = place.scale.calls
    async with stage.set_up(place) as on, _crowd(on.server, 1) as crowd:
        saved = Saved(on.client, crowd)
        with place.server(engine="memory") as other:
            async with other.client() as client, _crowd(other, 1) as unsaved:
                series = await rounds.alternate(
                    {
                        OURS: lambda: saved.changes(count),
                        "in memory": lambda: unsaved.changes(client, count),
                        ECHO: lambda: rounds.round_trip(on.echo_call, count),
                        SQLITE: lambda: on.commit_time(count),
                    },
                    place.scale.rounds,
                )
    echo = series[ECHO]
    whole = calls.figure(
        "change to watcher, from the call of set",
        "s",
        series.without("in memory"),
        original=3.1e-3,
        note=(
            f"the commit took {rounds.median(saved.commits) * 1e6:.0f} µs of it, and the rest is "
            f"{rounds.ratio(saved.rests, echo):.2f} times the echo's round trip; with `--engine "
            f"memory`, where there is no commit, {series.median('in memory') * 1e6:.0f} µs, "
            f"{series.ratio('in memory', ECHO):.2f} times the echo's round trip"
        ),
    )
    after = outcome.Figure(
        what="change to watcher, from the end of the commit",
        unit="s",
        ours=rounds.median(saved.afters),
        peers={ECHO: series.median(ECHO)},
        aim=outcome.Aim(
            text="within 2.5 times of the echo's round trip",
            value=rounds.ratio(saved.afters, echo),
            limit=2.5,
        ),
    )
    return [whole, after]


class Saved:
    """Changes one after the other, with what the server says of the commit of each."""

    def __init__(self, client: Client, crowd: Crowd) -> None:
        self._client = client
        self._crowd = crowd
        #: The medians of each round, in seconds: of the commits, of what the changes took beside
        #: their commits, and of the time from the end of the commit until the change was seen.
        self.commits: list[float] = []
        self.rests: list[float] = []
        self.afters: list[float] = []

    async def changes(self, count: int) -> float:
        """The median of so many changes."""
        times, commits, afters = [], [], []
        for _ in range(count):
            before = await self._engine()
            times.append(await self._crowd.change(self._client))
            after = await self._engine()
            commits.append(after["commits_s"] - before["commits_s"])
            afters.append(self._crowd.seen_at - after["committed_at"])
        self.commits.append(rounds.median(commits))
        self.rests.append(
            rounds.median(took - commit for took, commit in zip(times, commits, strict=True))
        )
        self.afters.append(rounds.median(afters))
        return rounds.median(times)

    async def _engine(self) -> dict[str, float]:
        facts: dict[str, float] = (await self._client.state())["engine"]
        return facts


async def watchers(place: peers.Place) -> list[outcome.Figure]:
    """From a change to the last of many watchers."""
    figures = []
    async with stage.set_up(place) as on:
        for size in place.scale.watchers:
            async with _crowd(on.server, size) as crowd:
                figures.append(await _last_of(on, crowd, place.scale.calls, place.scale.rounds))
    return figures


async def _last_of(on: stage.Stage, crowd: Crowd, calls_: int, rounds_: int) -> outcome.Figure:
    count = max(1, calls_ // crowd.size)
    size = crowd.size

    async def echoes() -> float:
        return rounds.median(
            [size / await rounds.rate(on.echo_call, size, size) for _ in range(count)]
        )

    series = await rounds.alternate(
        {
            OURS: lambda: crowd.changes(on.client, count),
            ECHO: echoes,
            SQLITE: lambda: on.commit_time(count),
        },
        rounds_,
    )
    who = "the only watcher" if size == 1 else f"the last of {size} watchers"
    lines = min(size, LINES)
    note = f"on {lines} line{'s' if lines > 1 else ''}; the echo: as many calls at once"
    return calls.figure(f"change to {who}", "s", series, note=note)
