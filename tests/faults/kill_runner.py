"""kill -9 of the runner that holds a job: `python -m tests.faults.kill_runner --rounds 50`.

A server on SQLite and three runners as processes; a job for any node counts by compare-and-set
under its fence. Each round does something to whoever holds the job (`--how`):

- `kill` ends the process without any last word, and starts it again later;
- `freeze` stops it for longer than its session lives, and lets it go on: it has to give up, its
  script, which does not heed its cancellation, must not get a write through, and it has to serve
  again;
- `cut` breaks its line for longer than the grace: the same;
- `blink` breaks its line for less than the grace: nothing may change hands;
- `server` kills the server and starts it again: nothing may change hands, if it is back within the
  grace, which is long here.

At the end nothing may be lost (`lost`), accepted under an old fence or from two nodes under one
(`doubles`), nor a claim be left when all runners are gone (`orphans`); no two runs may have been at
work at the same time around a kill (`overlaps`). Then the checker is checked: a script that heeds
no fence is frozen and let go, and its doubles must be found.

Exit code 1 for any of these, for a job that was not taken over within the grace (frozen: the time
to live) + 3 s, and for one that changed hands where it must not.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from moat_kv import open_client
from tests.faults import fleet
from tests.faults.serving import ServerProcess, served
from tests.runner.relay import Relay, relay

RUNNERS = 3
#: A session's, on one server; see `moat_kv.server.sessions`.
TTL_S, GRACE_S = 10.0, 2.0
#: What runners ask for whose server is away for as long as it takes to start, in seconds.
LASTING_S = 60.0
#: What a takeover may take beyond the session's end.
MARGIN_S = 3.0
#: How long a process is frozen, and a line cut, beyond what the session lasts.
BEYOND_S = 2.0
#: A line that is broken for so long is back within the grace.
BLINK_S = (0.05, 0.9)
#: After so long something hangs.
PATIENCE_S = 30.0


@dataclass(kw_only=True)
class Counts:
    """Of all rounds."""

    rounds: int = 0
    takeovers_s: list[float] = field(default_factory=list)
    """From the fault to the first step of another run, or to the next one of the same."""
    backs_s: list[float] = field(default_factory=list)
    """From when it could until the runner served again."""
    late: int = 0
    """Not taken over in time, or never."""
    moved: int = 0
    """Changed hands though the holder was there."""
    astray: int = 0
    """Runners that did not come back."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What rounds are done on."""

    server: ServerProcess
    desk: fleet.Desk
    runners: dict[str, fleet.RunnerProcess]
    lines: dict[str, Relay]
    chance: random.Random
    counts: Counts
    margin_s: float

    async def holder(self) -> tuple[fleet.Claim, fleet.RunnerProcess]:
        """Who has the job, after it has had it for a while."""
        await anyio.sleep(self.chance.uniform(0.1, 0.6))
        claim = await self.desk.claim()
        assert claim is not None
        return claim, self.runners[claim.node]

    async def see_takeover(self, claim: fleet.Claim, session_s: float) -> None:
        began = time.monotonic()
        after = await self.desk.step_after(claim.fence, PATIENCE_S)
        took_s = time.monotonic() - began
        self.counts.takeovers_s.append(took_s)
        if after is None or took_s > session_s + self.margin_s:
            self.counts.late += 1
            print(f"{claim} was taken over after {took_s:.1f} s by {after}", flush=True)

    async def see_same(self, claim: fleet.Claim) -> None:
        began = time.monotonic()
        before = await self.desk.count()
        with anyio.fail_after(PATIENCE_S):
            while await self.desk.count() <= before:
                await anyio.sleep(fleet.STEP_S / 2)
        self.counts.takeovers_s.append(time.monotonic() - began)
        now, state = await self.desk.claim(), await self.desk.state()
        if now != claim or state.get("fence") != claim.fence or state["reason"] != "running":
            self.counts.moved += 1
            print(f"{claim} has become {now}, the state is {state}", flush=True)

    async def see_back(self, name: str) -> None:
        began = time.monotonic()
        if not await self.desk.is_member(name, limit_s=TTL_S + self.margin_s):
            self.counts.astray += 1
            print(f"{name} does not serve again", flush=True)
        self.counts.backs_s.append(time.monotonic() - began)


async def kill(bench: Bench) -> None:
    claim, holder = await bench.holder()
    await holder.kill()
    await bench.see_takeover(claim, GRACE_S)
    bench.counts.backs_s.append(await holder.start())


async def freeze(bench: Bench) -> None:
    claim, holder = await bench.holder()
    began = time.monotonic()
    async with holder.frozen():
        await bench.see_takeover(claim, TTL_S)
        await anyio.sleep(began + TTL_S + BEYOND_S - time.monotonic())
    await bench.see_back(holder.name)


async def cut(bench: Bench) -> None:
    claim, holder = await bench.holder()
    line = bench.lines[holder.name]
    began = time.monotonic()
    line.cut(closed=True)
    await bench.see_takeover(claim, GRACE_S)
    await anyio.sleep(began + GRACE_S + BEYOND_S - time.monotonic())
    line.closed = False
    await bench.see_back(holder.name)


async def blink(bench: Bench) -> None:
    claim, holder = await bench.holder()
    line = bench.lines[holder.name]
    line.cut(closed=True)
    await anyio.sleep(bench.chance.uniform(*BLINK_S))
    line.closed = False
    await bench.see_same(claim)


async def server(bench: Bench) -> None:
    claim, _holder = await bench.holder()
    began = time.monotonic()
    await bench.server.kill()
    await bench.server.start()
    down_s = time.monotonic() - began
    await bench.see_same(claim)
    for name in bench.runners:
        await bench.see_back(name)
    print(f"the server was away for {down_s:.2f} s", flush=True)


ROUNDS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    each.__name__: each for each in (kill, freeze, cut, blink, server)
}
#: Where the line is broken on purpose the runners go through relays, which need TCP.
RELAYED = ("cut", "blink")


@asynccontextmanager
async def bench(folder: pathlib.Path, how: str, seed: int, margin_s: float) -> AsyncIterator[Bench]:
    """A server, runners, and a job that has begun."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(folder))
        client = await stack.enter_async_context(open_client(server.url))
        names = [f"r{number}" for number in range(1, RUNNERS + 1)]
        lines: dict[str, Relay] = {}
        if how in RELAYED:
            for name in names:
                lines[name] = await stack.enter_async_context(relay(server.tcp_url))
        urls = {name: lines[name].url if lines else server.url for name in names}
        settings = {"runner": {"ttl_s": LASTING_S, "grace_s": LASTING_S}} if how == "server" else {}
        runners = await stack.enter_async_context(fleet.fleet(urls, folder, settings=settings))
        desk = fleet.Desk(client, folder)
        # Whoever is frozen has to be refused, even if it does not end when it is told to.
        await desk.set_job(stubborn_s=1000.0 if how == "freeze" else 0.0)
        assert await desk.step_after(0, PATIENCE_S) is not None, "the job does not begin"
        yield Bench(
            server=server,
            desk=desk,
            runners=runners,
            lines=lines,
            chance=random.Random(seed),
            counts=Counts(),
            margin_s=margin_s,
        )


async def orphans(made: Bench, how: str) -> list[str]:
    """Claims that stay though all runners are gone."""
    for runner in made.runners.values():
        # Nobody waits for a long grace.
        await (runner.stop() if how == "server" else runner.kill())
    left: list[str] = []
    with anyio.move_on_after(GRACE_S + made.margin_s):
        while left := await made.desk.claims():
            await anyio.sleep(0.1)
    return left


async def unfenced(folder: pathlib.Path) -> fleet.Trace:
    """What a job leaves behind that goes on writing whatever has become of its claim."""
    async with (
        served(folder) as server,
        open_client(server.url) as client,
        fleet.fleet({"r1": server.url, "r2": server.url}, folder) as runners,
    ):
        desk = fleet.Desk(client, folder)
        await desk.set_job(stubborn_s=60.0, unfenced=True)
        claim = await desk.step_after(0, PATIENCE_S)
        assert claim is not None, "the job does not begin"
        async with runners[claim.node].frozen():
            await desk.step_after(claim.fence, PATIENCE_S)
        trace = await desk.trace()
        with anyio.move_on_after(PATIENCE_S):
            while not trace.doubles():
                await anyio.sleep(0.1)
                trace = await desk.trace()
        return trace


def _summary(how: str, trace: fleet.Trace, counts: Counts) -> str:
    refused = ", ".join(f"{count} {name}" for name, count in sorted(trace.refusals().items()))
    takes = {"blink": "going on", "server": "going on"}.get(how, "taken over")
    return (
        f"{counts.rounds} rounds of {how}: {trace.runs} runs, {len(trace.steps)} steps"
        f" ({refused or 'nothing'} met); {takes} after {_times(counts.takeovers_s)},"
        f" {counts.late} late, {counts.moved} moved; back after {_times(counts.backs_s)},"
        f" {counts.astray} astray; {len(trace.doubles())} doubles,"
        f" {len(trace.overlaps())} overlaps, {len(trace.lost())} lost"
    )


def _times(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2]:.2f} s p50, {ordered[-1]:.2f} s max"


async def run(
    folder: pathlib.Path, how: str, rounds: int, seed: int, *, margin_s: float = MARGIN_S
) -> bool:
    """All rounds; whether everything was as it has to be."""
    async with bench(folder, how, seed, margin_s) as made:
        counts = made.counts
        while counts.rounds < rounds:
            await ROUNDS[how](made)
            counts.rounds += 1
            if counts.rounds % 10 == 0 or counts.rounds == rounds:
                print(_summary(how, await made.desk.trace(), counts), flush=True)
        left = await orphans(made, how)
        trace = await made.desk.trace()
    faults = [*trace.doubles(), *trace.lost(), *left]
    if how == "kill":
        faults += trace.overlaps()
    if how == "freeze" and trace.refusals().get("StaleFence", 0) < rounds:
        faults.append(f"the frozen scripts met only {trace.refusals()}")
    for line in faults[:20]:
        print(line)
    print(f"{len(left)} orphaned claims", flush=True)
    return not (faults or counts.late or counts.moved or counts.astray)


async def main_of(folder: pathlib.Path, options: argparse.Namespace) -> int:
    (folder / "rounds").mkdir()
    good = await run(folder / "rounds", options.how, options.rounds, options.seed)
    if not options.no_control:
        (folder / "control").mkdir()
        found = len((await unfenced(folder / "control")).doubles())
        print(f"control, a script that heeds no fence: {found} doubles found")
        good = good and found > 0
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--how", choices=sorted(ROUNDS), default="kill")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-control", action="store_true", help="do not check the checker")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(main_of, pathlib.Path(folder), options)


if __name__ == "__main__":
    sys.exit(main())
