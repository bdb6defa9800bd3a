"""Bad scripts, let loose beside good ones: `python -m tests.faults.zoo --times 5`.

A server on SQLite and a runner, both as processes of their own; on the runner a job in its own
process, whose ticks show how late its loop is, and one in a child process that counts. Then each of
`beasts.BEASTS` is run as a job in a child process, so many times. Each time

- its error record has to say what was wrong, or its state its result;
- nothing of it may be left `GRACE_S` + 2 s after it ended, or was told to end;
- runner, server and the two neighbours have to be the same as before, and at work;
- the runner's loop may not be late by 100 ms or more.

Before the first one the lag is taken for as long with nobody there, as what the machine itself is
late. Exit code 1 if anything of this does not hold. `--only NAME` lets some loose, `--list` names
them.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from moat_kv import Client, P, Path, WatchEvent, open_client
from moat_kv.client import error_record
from moat_kv.config import Places
from moat_kv_runner import commands, running
from moat_kv_runner.children import processes
from moat_kv_runner.job import JobState, parse_state
from tests.faults import fleet
from tests.faults.beasts import BEASTS, Beast
from tests.faults.serving import ServerProcess, served

#: How long a script has after it was told to end, in seconds, and what may pass beyond that until
#: nothing is left of it.
GRACE_S = running.STOP_S
GONE_S = 2.0
#: For how long the lag is taken before the first one is let loose.
CALM_S = 3.0
#: How late the runner's loop may be, in seconds.
LAG_S = 0.1
#: How long one that does not end by itself is let be.
LOOSE_S = 1.0
#: After so long something hangs.
PATIENCE_S = 180.0

_LAG, _COUNT, _BEGUN = P("zoo.lag"), P("zoo.count"), P("zoo.begun")
_PLACES = Places()

#: Ticks in the runner's own loop; tells the worst of each quarter of a second.
TICKER = """
import time, anyio
while True:
    worst, until = 0.0, time.monotonic() + 0.25
    while (began := time.monotonic()) < until:
        await anyio.sleep(0.01)
        worst = max(worst, time.monotonic() - began - 0.01)
    await _client.set(_P("zoo.lag"), worst)
"""
#: A job as they should be, in a process of its own.
COUNTER = """
import anyio
while True:
    await _client.patch(_P("zoo.count"), "add", 1)
    await anyio.sleep(0.05)
"""


@dataclass(kw_only=True)
class Counts:
    """Of all that were let loose."""

    runs: int = 0
    lags_s: list[float] = field(default_factory=list)
    gone_s: list[float] = field(default_factory=list)
    """From its end, or from when it was told to end, until nothing was left of it."""
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lag_ms = max(self.lags_s, default=0.0) * 1000
        return (
            f"{self.runs} runs: the runner's loop late by {lag_ms:.0f} ms at most, all gone after"
            f" {max(self.gone_s, default=0.0):.1f} s at most, {len(self.faults)} faults"
        )


class Sight:
    """Sees the processes of the runner, those of a beast among them, and those that are left."""

    def __init__(self, runner: fleet.RunnerProcess) -> None:
        self._runner = runner
        #: All that were there before.
        self.standing = set(self._now())
        self._seen: set[tuple[int, int]] = set()

    def _now(self) -> list[tuple[int, int]]:
        pids = processes.descendants(self._runner.pid)
        return [found for pid in pids if (found := _identity(pid)) is not None]

    def look(self) -> None:
        self._seen.update(set(self._now()) - self.standing)

    def left(self) -> list[int]:
        """Those of the beast that are still there."""
        self.look()
        self._seen = {each for each in self._seen if _identity(each[0]) == each}
        return [pid for pid, _ in self._seen]


def _identity(pid: int) -> tuple[int, int] | None:
    """A process, and not another one that has its number later; None if it is gone."""
    with contextlib.suppress(OSError):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] not in "ZX":
            return pid, int(fields[19])
    return None


@dataclass(kw_only=True)
class Zoo:
    """Where they are let loose."""

    server: ServerProcess
    runner: fleet.RunnerProcess
    desk: Client
    counts: Counts = field(default_factory=Counts)
    places: Places = field(default_factory=Places)
    #: The worst lag that was told since this was last emptied.
    lags_s: list[float] = field(default_factory=list)
    gone_s: float = GONE_S

    # Jobs ---------------------------------------------------------------------------------------

    async def store(self, name: str, beast: Beast, **job: object) -> None:
        """A job, with its code and modules; written raw, as nobody checks a raw write."""
        value: dict[str, object] = {"code": beast.text, "is_async": beast.is_async}
        value |= {"vars": list(beast.data), "requires": list(beast.requires)}
        await self.desk.set(_PLACES.proc + P("zoo") / name, value)
        for module, needs in beast.modules.items():
            there = _PLACES.module / module
            await self.desk.set(there, {"code": "x = 1", "requires": list(needs)})
        limits, data = dict(beast.limits), dict(beast.data)
        code = P("zoo") / name
        job = {"code": code, "target": time.time(), "limits": limits, "data": data, **job}
        await self.desk.set(self.job(name), job)

    def job(self, name: str) -> Path:
        return commands.job_path(self.places, "any", fleet.GROUP, P("zoo") / name)

    async def state(self, name: str) -> JobState:
        place = commands.state_path(self.places, "any", fleet.GROUP, P("zoo") / name)
        return parse_state((await self.desk.get(place)).get("value"))

    async def remove(self, name: str) -> None:
        await self.desk.delete(self.job(name))
        await self.desk.delete_tree(P("zoo.many"))
        await self.desk.delete(_BEGUN)

    # Neighbours ---------------------------------------------------------------------------------

    async def listen(self) -> None:
        async with self.desk.watch(_LAG, max_depth=0) as watch:
            async for event in watch:
                if isinstance(event, WatchEvent) and "value" in event:
                    self.lags_s.append(event.value)

    async def count(self) -> int:
        found: int = (await self.desk.get(_COUNT)).get("value", 0)
        return found

    async def neighbours(self) -> tuple[object, ...]:
        """What must not change."""
        ticker, counter = await self.state("ticker"), await self.state("counter")
        return (
            (self.server.pid, self.server.is_alive()),
            (self.runner.pid, self.runner.is_alive()),
            *((each.fence, each.started, each.running) for each in (ticker, counter)),
        )

    async def see_them_at_work(self) -> None:
        """Both go on: one more number, and a tick that began after now."""
        ticks, count = len(self.lags_s), await self.count()
        with anyio.fail_after(PATIENCE_S):
            while len(self.lags_s) <= ticks + 1 or await self.count() <= count:
                await anyio.sleep(0.05)


async def let_loose(zoo: Zoo, beast: Beast) -> None:
    """One run of one beast, with everything that has to hold."""
    counts, sight = zoo.counts, Sight(zoo.runner)
    before = await zoo.neighbours()
    zoo.lags_s.clear()
    name = f"{beast.name}-{counts.runs}"
    await zoo.store(name, beast, delay=1000, isolate="process")
    began = time.monotonic()
    over_at = await _see_through(zoo, beast, name, sight)
    while left := sight.left():
        if time.monotonic() - over_at > GRACE_S + zoo.gone_s:
            counts.faults.append(f"{name}: {len(left)} of its processes are left")
            break
        await anyio.sleep(0.02)
    counts.gone_s.append(time.monotonic() - over_at)
    await _see_what_is_told(zoo, beast, name)
    try:
        await zoo.see_them_at_work()
    except TimeoutError:
        counts.faults.append(f"{name}: its neighbours are not at work any more")
    if (after := await zoo.neighbours()) != before:
        counts.faults.append(f"{name}: {before} became {after}")
    lag_s = max(zoo.lags_s, default=0.0)
    counts.lags_s.append(lag_s)
    if lag_s >= LAG_S:
        counts.faults.append(f"{name}: the runner's loop was late by {lag_s * 1000:.0f} ms")
    await zoo.remove(name)
    counts.runs += 1
    took_s = time.monotonic() - began
    print(
        f"{name}: {took_s:.1f} s, gone {counts.gone_s[-1]:.2f} s, lag {lag_s * 1000:.0f} ms",
        flush=True,
    )


async def _see_through(zoo: Zoo, beast: Beast, name: str, sight: Sight) -> float:
    """Until it has ended, or has been told to; when that was, by the monotonic clock."""
    over_at = 0.0
    with anyio.move_on_after(PATIENCE_S) as scope:
        if beast.end in ("killed", "stops"):
            while "value" not in await zoo.desk.get(_BEGUN):
                await _glance(sight)
            until = time.monotonic() + LOOSE_S
            while time.monotonic() < until:
                await _glance(sight)
            over_at = time.monotonic()
            await commands.disable(zoo.desk, zoo.job(name))
        if beast.end != "waits":
            while not (state := await zoo.state(name)).stopped or state.running:
                await _glance(sight)
    if scope.cancelled_caught:
        zoo.counts.faults.append(f"{name}: it does not end: {await zoo.state(name)}")
    return over_at or time.monotonic()


async def _glance(sight: Sight) -> None:
    sight.look()
    await anyio.sleep(0.02)


async def _see_what_is_told(zoo: Zoo, beast: Beast, name: str) -> None:
    """Its error record names the cause; one that has done its work has a result and no record."""
    told: str | None = None
    with anyio.move_on_after(GRACE_S + zoo.gone_s):
        while True:
            told = await _told(zoo, name)
            state = await zoo.state(name)
            if beast.end in ("done", "stops"):
                if told is None and state.reason == ("done" if beast.end == "done" else "stopped"):
                    return
            elif told is not None and beast.told in told:
                return
            await anyio.sleep(0.05)
    zoo.counts.faults.append(f"{name}: told is {told!r}, its state {await zoo.state(name)}")


async def _told(zoo: Zoo, name: str) -> str | None:
    """What is on record of a job or its code; what keeps it waiting is in its state."""
    for subsystem, path in (("run", zoo.job(name)), ("code", _PLACES.proc + P("zoo") / name)):
        record = await error_record.find(zoo.desk, subsystem, path, places=zoo.places)
        if record is not None and record.resolved is None:
            return record.message
    reason = (await zoo.state(name)).reason or ""
    return reason if reason.startswith("waiting: ") else None


@asynccontextmanager
async def opened(folder: pathlib.Path) -> AsyncIterator[Zoo]:
    """Server, runner and the neighbours, at work."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(folder))
        desk = await stack.enter_async_context(open_client(server.url))
        runners = await stack.enter_async_context(fleet.fleet({"keeper": server.url}, folder))
        runner = runners["keeper"]
        threading.Thread(target=_drain, args=(runner,), daemon=True).start()
        zoo = Zoo(server=server, runner=runner, desk=desk)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(zoo.listen)
        ticker = Beast(name="ticker", text=TICKER, end="stops")
        await zoo.store("ticker", ticker, isolate="inline")
        await zoo.store(
            "counter", Beast(name="counter", text=COUNTER, end="stops"), isolate="process"
        )
        await zoo.see_them_at_work()
        yield zoo
        tasks.cancel_scope.cancel()


def _drain(runner: fleet.RunnerProcess) -> None:
    """Take what it prints, as a terminal or a journal does."""
    for _ in runner.output:
        pass


async def run(
    folder: pathlib.Path,
    beasts: Sequence[Beast],
    times: int,
    *,
    calm_s: float = CALM_S,
    gone_s: float = GONE_S,
) -> Counts:
    """Let each loose so many times; the counts, with all faults."""
    async with opened(folder) as zoo:
        zoo.gone_s = gone_s
        zoo.lags_s.clear()
        await anyio.sleep(calm_s)
        print(f"nobody is there: lag {max(zoo.lags_s, default=0.0) * 1000:.0f} ms", flush=True)
        for beast in beasts:
            for _ in range(times):
                await let_loose(zoo, beast)
        return zoo.counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5, help="how often each is let loose")
    parser.add_argument("--only", action="append", metavar="NAME", help="this one; may be repeated")
    parser.add_argument("--list", action="store_true", help="name them all")
    options = parser.parse_args()
    if options.list:
        print("\n".join(beast.name for beast in BEASTS))
        return 0
    names = options.only or [beast.name for beast in BEASTS]
    if unknown := set(names) - {beast.name for beast in BEASTS}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; --list names them all")
    chosen = [beast for beast in BEASTS if beast.name in names]
    with tempfile.TemporaryDirectory() as folder:
        counts = anyio.run(run, pathlib.Path(folder), chosen, options.times)
    for fault in counts.faults:
        print(f"fault: {fault}")
    print(f"{len(chosen)} kinds, {counts}")
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
