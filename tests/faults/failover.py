"""How long a job is without a runner: `python -m tests.faults.failover --rounds 20`.

A server on SQLite, runners as processes, and a job for any node that beats all the time. Measured
is from the last beat of the old run to the first of the new one, after each of (`--how`)

- `crash`: the process of the script is killed; its runner begins it anew, after the back-off;
- `kill`: `kill -9` of the runner that has it; another one takes over when the session's line has
  been broken for the grace;
- `unreachable`: nothing passes any more between the server and that runner's host, and nobody is
  told; another one takes over when the session has been silent for its time to live.

Exit code 1 if one takes longer than it may, if a write was accepted under an old fence or a fence
of two, or if two runs were at work at the same time.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from moat_kv import open_client
from moat_kv.testing import proxy
from tests.faults import beats, fleet
from tests.faults.serving import served

RUNNERS = 3
JOB = "beat"
#: A session's, on one server; see `moat_kv.server.sessions`.
TTL_S, GRACE_S = 10.0, 2.0
#: The job's wait after its first failure.
BACKOFF_S = 0.11
#: How long it may take, by what happened, in seconds.
LIMITS_S = {"crash": 1.0 + BACKOFF_S, "kill": 3.0, "unreachable": TTL_S + 2.0}
#: After so long something hangs.
PATIENCE_S = 40.0


@dataclass(kw_only=True)
class Counts:
    """Of all rounds of one kind."""

    how: str
    gaps_s: list[float] = field(default_factory=list)
    overlaps: int = 0
    doubles: list[str] = field(default_factory=list)

    @property
    def late(self) -> int:
        return sum(gap > LIMITS_S[self.how] for gap in self.gaps_s)

    def __str__(self) -> str:
        ordered = sorted(self.gaps_s) or [0.0]
        return (
            f"{len(self.gaps_s)} times {self.how}: from the last write of the old to the first of"
            f" the new {ordered[len(ordered) // 2]:.2f} s p50, {ordered[-1]:.2f} s max"
            f" (at most {LIMITS_S[self.how]:.2f} s); {self.late} late,"
            f" {self.overlaps} overlaps, {len(self.doubles)} doubles"
        )


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What rounds are done on."""

    jobs: beats.Beats
    runners: dict[str, fleet.RunnerProcess]
    lines: dict[str, proxy.Proxy]
    chance: random.Random

    async def settled(self) -> beats.Note:
        """The newest beat of a run that has been at work for a while."""
        await anyio.sleep(self.chance.uniform(0.5, 1.5))
        now = time.monotonic()
        note = await self.jobs.first(JOB, lambda _: True, since=now, limit_s=PATIENCE_S)
        assert note is not None, "the job does not beat"
        return note

    async def gap(self, old: beats.Note) -> tuple[float, beats.Note]:
        """From the last beat of a run to the first of the next one."""
        new = await self.jobs.first(
            JOB, lambda note: note.run != old.run, since=old.at, limit_s=PATIENCE_S
        )
        assert new is not None, "nobody has taken the job over"
        last = max(note.at for note in self.of_run(old) if note.what == "ok")
        return new.at - last, new

    def of_run(self, one: beats.Note) -> list[beats.Note]:
        return [note for note in self.jobs.notes(JOB) if note.run == one.run]


async def crash(bench: Bench, old: beats.Note) -> float:
    assert old.pid != bench.runners[old.node].pid, "the script has no process of its own"
    os.kill(old.pid, signal.SIGKILL)
    took_s, _ = await bench.gap(old)
    return took_s


async def kill(bench: Bench, old: beats.Note) -> float:
    holder = bench.runners[old.node]
    await holder.kill()
    took_s, _ = await bench.gap(old)
    await holder.start()
    return took_s


async def unreachable(bench: Bench, old: beats.Note) -> float:
    line = bench.lines[old.node]
    line.cut()
    try:
        took_s, _ = await bench.gap(old)
    finally:
        line.heal()  # what waited comes through, and has to be refused
    return took_s


ROUNDS: dict[str, Callable[[Bench, beats.Note], Awaitable[float]]] = {
    each.__name__: each for each in (crash, kill, unreachable)
}


@asynccontextmanager
async def bench(folder: pathlib.Path, how: str, seed: int) -> AsyncIterator[Bench]:
    """A server, runners, and a job that beats."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(folder))
        client = await stack.enter_async_context(open_client(server.url))
        names = [f"r{number}" for number in range(1, RUNNERS + 1)]
        lines: dict[str, proxy.Proxy] = {}
        if how == "unreachable":
            for name in names:
                lines[name] = await stack.enter_async_context(proxy.proxied(server.tcp_url))
        urls = {name: lines[name].url if lines else server.url for name in names}
        runners = await stack.enter_async_context(fleet.fleet(urls, folder))
        beating = beats.Beats(client, folder)
        with anyio.fail_after(PATIENCE_S):
            await beating.warm(names)
        await beating.add(JOB, isolate="process")
        yield Bench(jobs=beating, runners=runners, lines=lines, chance=random.Random(seed))


async def run(folder: pathlib.Path, how: str, rounds: int, seed: int) -> Counts:
    """All rounds of one kind."""
    counts = Counts(how=how)
    async with bench(folder, how, seed) as made:
        for _ in range(rounds):
            old = await made.settled()
            counts.gaps_s.append(await ROUNDS[how](made, old))
            last = max(note.at for note in made.of_run(old))
            counts.overlaps += any(
                note.run != old.run and old.at < note.at < last for note in made.jobs.notes(JOB)
            )
            print(f"{how}: {counts.gaps_s[-1]:.2f} s", flush=True)
        counts.doubles = beats.doubles(await made.jobs.writes(JOB))
    return counts


async def main_of(options: argparse.Namespace) -> int:
    good = True
    for how in [options.how] if options.how else ROUNDS:
        with tempfile.TemporaryDirectory() as folder:
            counts = await run(pathlib.Path(folder), how, options.rounds, options.seed)
        for line in counts.doubles[:10]:
            print(line)
        print(counts, flush=True)
        good = good and not (counts.late or counts.doubles or counts.overlaps)
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="of each kind")
    parser.add_argument("--how", choices=sorted(ROUNDS))
    parser.add_argument("--seed", type=int, default=1)
    return anyio.run(main_of, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
