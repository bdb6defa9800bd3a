"""One of 100 watchers stops reading: `python -m tests.faults.stalled_watcher --rounds 5`.

A hundred clients watch the same subtree, each on its own line, and one writes. Each round measures
twice how long a set takes and when the other 99 see it: with all of them reading, and with one
stopped in the middle (SIGSTOP of its process, which then holds everything up that can be held up).
Both ratios of the medians, stalled to not, have to be below `--most`. Between the two measurements
there is a flood of large changes, which only that one watches: they fill its line, and what waits
for it in the server must not grow with them. Exit code 0 if all was so, else 1.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from moat_kv import Client, P, open_client
from moat_kv.client import results
from tests.faults.serving import ServerProcess, eventually, served

_ROOT = pathlib.Path(__file__).parents[2]
PLACE = P("watched")
SMALL = PLACE / "small"
LARGE = PLACE / "large"
PING, PONG = PLACE / "ping", P("pong")
#: How many entries are written over and over.
PATHS = 50
#: A change of the measurement, and one of the flood between, in bytes.
VALUE_BYTES = 200
FLOOD_VALUE_BYTES = 20_000
#: How many of the latter.
FLOOD = 1_500
#: So long after one change comes the next, in seconds.
PAUSE_S = 0.002
#: What the server's memory may grow by during a flood that is many times as large, in bytes.
GROWTH_BYTES = 24 * 1024 * 1024


@dataclass(kw_only=True)
class Measured:
    """One measurement, in seconds."""

    sets: list[float] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    """From before the set to when a watcher had it, for each watcher and change."""

    def __iadd__(self, other: Measured) -> Measured:
        self.sets += other.sets
        self.seen += other.seen
        return self

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.sets), statistics.median(self.seen)


class Watchers:
    """Clients that watch, in this process."""

    def __init__(self) -> None:
        self.measured = Measured()
        #: How many of the watchers have seen the newest change.
        self.count = 0
        self.newest = 0
        self._sent_at: dict[int, float] = {}

    async def watch(self, client: Client) -> None:
        async with client.watch(SMALL, fetch=True) as changes:
            async for event in changes:
                if not isinstance(event, results.WatchEvent) or "value" not in event:
                    continue
                number = event.value[0]
                sent_at = self._sent_at.get(number)
                if sent_at is not None:
                    self.measured.seen.append(time.perf_counter() - sent_at)
                self.count += number == self.newest

    async def measure(self, writer: Client, changes: int) -> Measured:
        """Set one after the other; a short while between them, as a sensor would."""
        self.measured = Measured()
        for _ in range(changes):
            number = self.newest + 1
            self.newest, self.count = number, 0
            self._sent_at = {number: time.perf_counter()}
            await writer.set(SMALL / (number % PATHS), [number, b"x" * VALUE_BYTES])
            self.measured.sets.append(time.perf_counter() - self._sent_at[number])
            await anyio.sleep(PAUSE_S)
        return self.measured


async def flood(writer: Client, changes: int, chance: random.Random) -> None:
    """Large changes that nobody measures."""
    padding = chance.randbytes(FLOOD_VALUE_BYTES)
    for start in range(0, changes, PATHS):
        # All of them in one frame.
        await writer.batch([writer.op_set(LARGE / n, [start + n, padding]) for n in range(PATHS)])


@asynccontextmanager
async def watching(server: ServerProcess, count: int) -> AsyncIterator[tuple[Watchers, Client]]:
    """So many watchers, and a client that writes."""
    watchers = Watchers()
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(open_client(server.url))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for _ in range(count):
            client = await stack.enter_async_context(open_client(server.url))
            tasks.start_soon(watchers.watch, client)
        while (await writer.state())["watchers"] < count:
            await anyio.sleep(0.02)
        try:
            yield watchers, writer
        finally:
            tasks.cancel_scope.cancel()


class OtherProcess:
    """A watcher in a process of its own, which can be stopped."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-m", "tests.faults.stalled_watcher", "--child", url]
        self._process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL)
        self._number = 0

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    async def go_on(self, client: Client) -> None:
        """Let it run, until it has read everything up to now."""
        self._process.send_signal(signal.SIGCONT)
        self._number += 1
        await client.set(PING, self._number)
        with anyio.fail_after(60):
            while (await client.get(PONG)).get("value") != self._number:
                await anyio.sleep(0.01)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


async def watch_until_killed(url: str) -> None:
    """The process that is stopped: it watches everything, and answers the number at `PING`."""
    async with open_client(url) as client, client.watch(PLACE, fetch=True) as changes:
        async for event in changes:
            if isinstance(event, results.WatchEvent) and event.path == PING:
                await client.set(PONG, event.value)


@dataclass(kw_only=True)
class Round:
    """What one round found; ratios are stalled to not."""

    free: Measured
    held: Measured
    growth_bytes: int

    @property
    def ratios(self) -> tuple[float, float]:
        (a, b), (c, d) = self.free.medians, self.held.medians
        return c / a, d / b

    def __str__(self) -> str:
        (set_s, seen_s), (set_ratio, seen_ratio) = self.free.medians, self.ratios
        return (
            f"set {set_s * 1e3:.2f} ms, seen by a watcher {seen_s * 1e3:.2f} ms;"
            f" with one stalled x{set_ratio:.2f}, x{seen_ratio:.2f};"
            f" memory +{self.growth_bytes / 1e6:.1f} MB"
            f" while {FLOOD * FLOOD_VALUE_BYTES / 1e6:.0f} MB of changes were made for it"
        )


async def one_round(
    server: ServerProcess, *, watchers: int, changes: int, blocks: int, chance: random.Random
) -> Round:
    """Measure in turns with all reading and with one stalled, so many changes each time."""
    growths: list[int] = []
    free, held = Measured(), Measured()
    async with watching(server, watchers - 1) as (others, writer):
        other = OtherProcess(server.url)
        try:
            # Each entry at its full size, and everything warm, before anything is looked at.
            await flood(writer, 4 * PATHS, chance)
            await other.go_on(writer)
            await others.measure(writer, changes)
            for _ in range(blocks):
                await other.go_on(writer)
                free += await others.measure(writer, changes)
                other.stop()
                before = server.memory_bytes()
                await flood(writer, FLOOD, chance)
                growths.append(server.memory_bytes() - before)
                held += await others.measure(writer, changes)
                await eventually(lambda: others.count == watchers - 1)
        finally:
            other.close()
    return Round(free=free, held=held, growth_bytes=max(growths))


async def run(options: argparse.Namespace) -> int:
    chance = random.Random(options.seed)
    found: list[Round] = []
    with tempfile.TemporaryDirectory() as folder:
        async with served(pathlib.Path(folder)) as server:
            for number in range(1, options.rounds + 1):
                found.append(
                    await one_round(
                        server,
                        watchers=options.watchers,
                        changes=100,
                        blocks=3,
                        chance=chance,
                    )
                )
                print(f"round {number}: {found[-1]}", flush=True)
    sets = statistics.median(one.ratios[0] for one in found)
    seen = statistics.median(one.ratios[1] for one in found)
    growth = max(one.growth_bytes for one in found)
    print(
        f"{len(found)} rounds of {options.watchers} watchers: with one stalled a set takes"
        f" x{sets:.2f}, a change reaches the others in x{seen:.2f} (medians);"
        f" the server's memory grew by {growth / 1e6:.1f} MB at most"
    )
    return 0 if max(sets, seen) < options.most and growth < GROWTH_BYTES else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--watchers", type=int, default=100)
    parser.add_argument("--most", type=float, default=1.25, help="the highest ratio that will do")
    parser.add_argument("--child", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        anyio.run(watch_until_killed, options.child)
        return 0
    return anyio.run(run, options)


if __name__ == "__main__":
    sys.exit(main())
