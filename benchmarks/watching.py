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
        self._seen_at = 0.0
        self._all = anyio.Event()

    async def watch(self, client: Client, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with client.watch(_PLACE, fetch=True) as events:
            async for event in events:
                if isinstance(event, results.Ready):
                    task_status.started()
                    continue
                self._missing -= 1
                if not self._missing:
                    self._seen_at = time.perf_counter()
                    self._all.set()

    async def change(self, client: Client) -> float:
        """Set the entry; the time from before the call until all have seen it, in seconds."""
        self._missing = self.size
        self._all = anyio.Event()
        began = time.perf_counter()
        await client.set(_PLACE, entries.VALUE)
        await self._all.wait()
        return self._seen_at - began

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
        with place.server(engine="memory") as other:
            async with other.client() as client, _crowd(other, 1) as unsaved:
                series = await rounds.alternate(
                    {
                        OURS: lambda: crowd.changes(on.client, count),
                        "in memory": lambda: unsaved.changes(client, count),
                        ECHO: lambda: rounds.round_trip(on.echo_call, count),
                        SQLITE: lambda: on.commit_time(1, count),
                    },
                    place.scale.rounds,
                )
    after = rounds.median(
        (ours - commit) / echo
        for ours, commit, echo in zip(series[OURS], series[SQLITE], series[ECHO], strict=True)
    )
    aim = outcome.Aim(
        text="within 2.5 times of the echo's round trip after the commit", value=after, limit=2.5
    )
    unsaved_ratio = series.ratio("in memory", ECHO)
    note = (
        f"with `--engine memory`, where there is no commit, {series.median('in memory') * 1e6:.0f} "
        f"µs, {unsaved_ratio:.2f} times the echo's round trip"
    )
    del series["in memory"]
    return [
        calls.figure(
            "change to watcher, from the call of set",
            "s",
            series,
            original=3.1e-3,
            aim=aim,
            note=note,
        )
    ]


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
            SQLITE: lambda: on.commit_time(1, count),
        },
        rounds_,
    )
    who = "the only watcher" if size == 1 else f"the last of {size} watchers"
    lines = min(size, LINES)
    note = f"on {lines} line{'s' if lines > 1 else ''}; the echo: as many calls at once"
    return calls.figure(f"change to {who}", "s", series, note=note)
