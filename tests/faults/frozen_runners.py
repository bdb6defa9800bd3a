"""Runners that wake when their claims are over: `python -m tests.faults.frozen_runners`.

A server on SQLite, four runners as processes, and as many jobs for any node, which beat all the
time. In each turn some runners that have jobs are stopped (SIGSTOP), one for each of `--rounds`,
and let go on when their sessions are long over and others have their jobs. A runner's scripts are
in processes of their own, which are stopped with it, and so are their keepers: whatever was under
way goes on at waking.

Exit code 1 if a write was accepted under an old fence or a fence of two (`doubles`, from the tree),
if a script was at work for more than 1 s after waking (`overlap`, from what it notes beside each
try to write), or if a job was not taken over. Then the checker is checked: with `--unfenced` the
scripts write with a client of their own, and doubles must be found.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from moat_kv import open_client
from tests.faults import beats, fleet
from tests.faults.serving import served

RUNNERS = 4
JOBS = tuple(f"j{number}" for number in range(RUNNERS))
#: So many are stopped at a time at most; the others take over.
AT_ONCE = 3
#: A session's on one server, see `moat_kv.server.sessions`; and what a takeover takes beyond it.
TTL_S, MARGIN_S = 10.0, 20.0
#: How long a runner stays stopped after its jobs are others', and is watched after it wakes.
STAY_S, LOOK_S = 1.0, 3.0
#: A script may be at work for so long after its runner wakes, in seconds.
OVERLAP_S = 1.0
PATIENCE_S = 40.0


@dataclass(kw_only=True)
class Counts:
    """Of all turns."""

    frozen: int = 0
    runs: int = 0
    """That were frozen with their runners."""
    takeovers_s: list[float] = field(default_factory=list)
    overlaps_s: list[float] = field(default_factory=list)
    """For how long each was at work after waking."""
    refused: int = 0
    """Writes of theirs that were refused then."""
    missing: int = 0
    doubles: list[str] = field(default_factory=list)
    writes: int = 0

    @property
    def is_good(self) -> bool:
        return not self.doubles and not self.missing and self.slowest_s <= OVERLAP_S

    @property
    def slowest_s(self) -> float:
        return max(self.overlaps_s, default=0.0)

    def __str__(self) -> str:
        taken = sorted(self.takeovers_s) or [0.0]
        return (
            f"{self.frozen} runners frozen past their claims, with {self.runs} runs; taken over"
            f" after {taken[len(taken) // 2]:.1f} s p50, {taken[-1]:.1f} s max,"
            f" {self.missing} not; at work after waking {self.slowest_s:.2f} s at most"
            f" (allowed {OVERLAP_S:.0f} s), {self.refused} late writes refused;"
            f" {self.writes} writes, {len(self.doubles)} accepted under an old fence"
        )


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is there."""

    jobs: beats.Beats
    runners: dict[str, fleet.RunnerProcess]
    chance: random.Random

    async def turn(self, count: int, counts: Counts) -> None:
        """Freeze so many runners that have jobs, and let them go on."""
        began = time.monotonic()
        held: dict[str, list[beats.Note]] = {}
        for job in JOBS:
            note = await self.jobs.first(job, _any, since=began, limit_s=PATIENCE_S)
            assert note is not None, f"{job} does not beat"
            held.setdefault(note.node, []).append(note)
        chosen = self.chance.sample(sorted(held), min(count, len(held)))
        runs = [note for name in chosen for note in held[name]]
        counts.frozen += len(chosen)
        counts.runs += len(runs)
        runners = {self.runners[name].pid for name in chosen}
        scripts = {note.pid for note in runs} - runners
        # As if the whole machine were: also what would end the scripts in time.
        pids = runners | scripts | {_parent(pid) for pid in scripts}
        frozen = time.monotonic()
        _send(pids, signal.SIGSTOP)
        try:
            for note in runs:
                await self._see_taken(note, frozen, counts)
            await anyio.sleep(STAY_S)
        finally:
            woken = time.monotonic()
            _send(pids, signal.SIGCONT)
        await anyio.sleep(LOOK_S)
        for note in runs:
            late = [n for n in self.jobs.notes(note.job) if n.run == note.run and n.at >= woken]
            counts.overlaps_s.append(max((n.at - woken for n in late), default=0.0))
            counts.refused += sum(n.what not in ("try", "ok") for n in late)
        for name in chosen:
            await self._until_back(name)

    async def _see_taken(self, old: beats.Note, frozen: float, counts: Counts) -> None:
        limit_s = max(0.1, frozen + TTL_S + MARGIN_S - time.monotonic())
        new = await self.jobs.first(
            old.job, lambda note: note.run != old.run, since=frozen, limit_s=limit_s
        )
        if new is None:
            counts.missing += 1
            print(f"{old.job} of {old.node} is not taken over", flush=True)
        else:
            counts.takeovers_s.append(new.at - frozen)

    async def _until_back(self, name: str) -> None:
        desk = fleet.Desk(self.jobs.client, self.jobs.file.parent)
        assert await desk.is_member(name, limit_s=PATIENCE_S), f"{name} does not serve again"


def _any(_note: beats.Note) -> bool:
    return True


def _parent(pid: int) -> int:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def _send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        # Those that went on first may have ended others.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@asynccontextmanager
async def bench(folder: pathlib.Path, seed: int, *, unfenced: bool = False) -> AsyncIterator[Bench]:
    """A server, runners, and jobs that beat."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(folder))
        client = await stack.enter_async_context(open_client(server.url))
        urls = {f"r{number}": server.url for number in range(1, RUNNERS + 1)}
        runners = await stack.enter_async_context(fleet.fleet(urls, folder))
        beating = beats.Beats(client, folder, url=server.url if unfenced else "")
        with anyio.fail_after(PATIENCE_S):
            await beating.warm(runners)
        await beating.add(*JOBS, isolate="inline" if unfenced else "process")
        yield Bench(jobs=beating, runners=runners, chance=random.Random(seed))


async def run(folder: pathlib.Path, rounds: int, seed: int, *, unfenced: bool = False) -> Counts:
    """Freeze so many runners, some at a time."""
    counts = Counts()
    async with bench(folder, seed, unfenced=unfenced) as made:
        while counts.frozen < rounds:
            await made.turn(min(AT_ONCE, rounds - counts.frozen), counts)
            print(counts, flush=True)
        for job in JOBS:
            writes = await made.jobs.writes(job)
            counts.writes += len(writes)
            counts.doubles += beats.doubles(writes)
    return counts


async def main_of(options: argparse.Namespace) -> int:
    good = True
    for unfenced in (False, *([] if options.no_control else [True])):
        with tempfile.TemporaryDirectory() as name:
            rounds = 1 if unfenced else options.rounds
            counts = await run(pathlib.Path(name), rounds, options.seed, unfenced=unfenced)
        for line in counts.doubles[:5]:
            print(line)
        print(f"{'control, scripts that heed no fence: ' if unfenced else ''}{counts}", flush=True)
        good = good and (bool(counts.doubles) if unfenced else counts.is_good)
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="runners that are frozen")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-control", action="store_true", help="do not check the checker")
    return anyio.run(main_of, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
