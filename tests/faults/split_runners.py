"""Runners in a network that is parted: `python -m tests.faults.split_runners --rounds 20`.

Three NATS nodes with a server and a runner each. Two jobs for any node beat all the time, one with
`on_split` `fenced`, one with `each`. In each round one place is cut off from the two others, every
other time the one that has the jobs, until each part runs what it should; then the network is
healed. What has to hold:

- `fenced`: no write was accepted under an old fence or under a fence of two (`doubles`), and none
  without a fence;
- `each`: the part without agreement runs it too, and no part has two runs at work at the same time,
  but for the time in which its members settle, which is shown (`overlap`);
- after the heal one run of each job is left within 20 s.

The server's times are what they are by default, so a round takes about a minute.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from moat_kv import open_client
from tests.faults import beats, fleet, network_box
from tests.faults.network_box import Box

JOBS = ("fenced", "each")
#: A lease, a session's time to live, and what a takeover may take beyond them, in seconds.
TAKEOVER_S = 20.0 + 30.0 + 20.0
#: A lease, the time in which members settle, and some seconds.
APART_S = 20.0 + 12.0 + 25.0
#: One run of each job is left so long after the heal, in seconds.
HEAL_S = 20.0
#: How long both parts go on before the heal, and the one after it, in seconds.
STAY_S = 3.0
START_S = 60.0


@dataclass(kw_only=True)
class Counts:
    """Of all rounds."""

    rounds: int = 0
    holders_cut: int = 0
    aparts_s: list[float] = field(default_factory=list)
    """From the cut to the first beat without a claim."""
    takeovers_s: list[float] = field(default_factory=list)
    """From the cut to the first beat of another runner, where a holder was cut off."""
    heals_s: list[float] = field(default_factory=list)
    """From the heal to the last beat of a run that was not to go on."""
    overlaps_s: list[float] = field(default_factory=list)
    """How long two runs of one part were at work, by round."""
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.rounds} splits, {self.holders_cut} of them from whoever had a job: `each` ran"
            f" in the cut part after {_times(self.aparts_s)}; taken over after"
            f" {_times(self.takeovers_s)}; one again after {_times(self.heals_s)}; overlap while"
            f" members settle {sum(self.overlaps_s):.2f} s in all,"
            f" {max(self.overlaps_s, default=0.0):.2f} s at most; {len(self.wrong)} wrong"
        )


def _times(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2]:.1f} s p50, {ordered[-1]:.1f} s max"


class Bench:
    """What is there."""

    def __init__(self, box: Box, made: beats.Beats, runners: dict[str, str], seed: int) -> None:
        self.box = box
        self.beats = made
        #: The runner of each server.
        self.runners = runners
        self.chance = random.Random(seed)
        self.counts = Counts()

    def wrong(self, text: str) -> None:
        line = f"round {self.counts.rounds}: {text}"
        print(line, flush=True)
        self.counts.wrong.append(line)

    async def round(self) -> None:
        """Split, look, heal, look."""
        held = await self._in_order()
        servers = {name: server for server, name in self.runners.items()}
        if self.counts.rounds % 2 == 0:
            cut = servers[held[self.chance.choice(JOBS)]]
        else:
            cut = self.chance.choice(self.box.servers)
        runner, index = self.runners[cut], self.box.servers.index(cut)
        places = list(zip(self.box.servers, self.box.nodes, strict=True))
        others = [name for place in places if place[0] != cut for name in place]
        began = time.monotonic()
        await self.box.do(self.box.cluster.split, [cut, self.box.nodes[index]], others)
        try:
            await self._see_parted(held, runner, began)
        finally:
            healed = time.monotonic()
            with anyio.CancelScope(shield=True):
                await self.box.do(self.box.cluster.heal)
        await self._see_whole(healed)
        both = self.beats.notes("each")
        sides = [
            [note for note in both if (note.node == runner) == is_cut] for is_cut in (True, False)
        ]
        self.counts.overlaps_s.append(sum(beats.overlap_s(side, began, healed) for side in sides))
        self.counts.rounds += 1

    async def _in_order(self) -> dict[str, str]:
        """Wait until all is whole and each job has a holder that beats; who has which."""
        await network_box.until_whole(self.box, START_S)
        held = {}
        with anyio.fail_after(START_S):
            for job in JOBS:
                now = time.monotonic()
                note = await self.beats.first(
                    job, lambda each: each.fence > 0, since=now, limit_s=START_S
                )
                assert note is not None, f"{job} does not beat"
                held[job] = note.node
        return held

    async def _see_parted(self, held: dict[str, str], runner: str, began: float) -> None:
        cut_jobs = [job for job in JOBS if held[job] == runner]
        self.counts.holders_cut += bool(cut_jobs)
        apart = await self.beats.first(
            "each",
            lambda each: each.node == runner and not each.fence,
            since=began,
            limit_s=APART_S,
        )
        if apart is None:
            self.wrong(f"{runner} is cut off and does not run `each`")
        else:
            self.counts.aparts_s.append(apart.at - began)
        for job in cut_jobs:
            left_s = began + TAKEOVER_S - time.monotonic()
            taken = await self.beats.first(
                job,
                lambda each: each.node != runner and each.fence > 0,
                since=began,
                limit_s=max(left_s, 0.1),
            )
            if taken is None:
                self.wrong(f"{job} of {runner}, which is cut off, is not taken over")
            else:
                self.counts.takeovers_s.append(taken.at - began)
        for job in set(JOBS).difference(cut_jobs):
            now = time.monotonic()
            if (
                await self.beats.first(job, lambda each: each.fence > 0, since=now, limit_s=START_S)
                is None
            ):
                self.wrong(f"{job} does not go on where there is agreement")
        await anyio.sleep(STAY_S)

    async def _see_whole(self, healed: float) -> None:
        """Until one run of each job is left, and goes on for a while."""
        left = HEAL_S + STAY_S
        for job in JOBS:
            over = healed
            with anyio.move_on_after(left + 10.0):
                while True:
                    notes = [n for n in self.beats.notes(job) if n.at > time.monotonic() - STAY_S]
                    alive = {note.run for note in notes}
                    if len(alive) == 1 and all(note.fence for note in notes):
                        break
                    over = time.monotonic()
                    await anyio.sleep(0.1)
            # What was alive for the last time `STAY_S` before it was missed.
            took_s = max(0.0, over - STAY_S - healed)
            self.counts.heals_s.append(took_s)
            if took_s > HEAL_S:
                self.wrong(f"{job}: {took_s:.1f} s after the heal there was not one run yet")

    async def look(self) -> None:
        """At what the tree has let through, after all rounds."""
        for job in JOBS:
            writes = await self.beats.writes(job)
            for each in beats.doubles(writes):
                self.wrong(f"{job}: {each}")
        unfenced = [each for each in await self.beats.writes("fenced") if not each.fence]
        for write in unfenced[:3]:
            self.wrong(f"fenced: {write} has no fence")


@asynccontextmanager
async def bench(box: Box, folder: pathlib.Path, seed: int) -> AsyncIterator[Bench]:
    """Runners at a network's servers, and the jobs."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(list(box.urls)))
        made = beats.Beats(client, folder)
        runners = {server: f"r{server}" for server in box.servers}
        urls = {runners[server]: box.url(server) for server in box.servers}
        await stack.enter_async_context(fleet.fleet(urls, folder))
        for job in JOBS:
            await made.add(job, on_split=job)
        yield Bench(box, made, runners, seed)


async def run(box: Box, folder: pathlib.Path, rounds: int, seed: int) -> Counts:
    """All rounds."""
    async with bench(box, folder, seed) as made:
        while made.counts.rounds < rounds:
            await made.round()
            print(made.counts, flush=True)
        await made.look()
    return made.counts


async def main_of(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        async with network_box.box(folder) as box:
            counts = await run(box, folder, options.rounds, options.seed)
    print(counts)
    return 1 if counts.wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    return anyio.run(main_of, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
