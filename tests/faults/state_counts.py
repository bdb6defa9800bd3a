"""Exact sums in shared models: `python -m tests.faults.state_counts --kills 10`.

First 8 threads of one process alone, then 8 threads and 8 processes through a real server, each
with 5,000 increments (`--each`) of one model: checkout and commit under its lock. With `--kills`
the server is killed and started again so many times meanwhile; with `--cluster` it is a network of
three, whose servers the processes use in turn (threads: whichever answers), any of them is killed,
and one is cut off for a while (`--cuts` times). Refused commits are made again. In the end the sum
must be exact. Exit code 0 if it is, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import anyio
import anyio.to_thread

from moat_kv import P, open_client
from moat_kv.state import State
from tests.faults import network_box, serving, state_worker

_ROOT = pathlib.Path(__file__).parents[2]
ENTRY = P(":.moat.kv.model.Sum")
#: A worker that is not done so long after the last fault hangs, in seconds.
LIMIT_S = 3_600.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one run."""

    what: str
    wanted: int
    found: int
    tally: Tally[str]
    faults: str
    took_s: float

    @property
    def is_exact(self) -> bool:
        return self.found == self.wanted == self.tally["done"] and not self.tally["unknown"]

    def __str__(self) -> str:
        refused = {k: v for k, v in sorted(self.tally.items()) if k not in ("done", "unknown")}
        again = ", ".join(f"{count} {name}" for name, count in refused.items()) or "none"
        return (
            f"{self.what}: {self.found} of {self.wanted}, {self.tally['unknown']} unknown, refused"
            f" and made again: {again}; {self.faults}; {self.took_s:.1f} s,"
            f" {self.took_s / self.wanted * 1e6:.0f} us each;"
            f" {'exact' if self.is_exact else 'WRONG'}"
        )


def alone(threads: int, each: int) -> Outcome:
    """Threads of this process, without a server."""
    state_worker.load()
    began = time.monotonic()
    tally = state_worker.add_in_threads(each, threads)
    took_s = time.monotonic() - began
    found = State().checkout(state_worker.Sum).n
    State().reset()
    return Outcome(
        what=f"{threads} threads alone",
        wanted=threads * each,
        found=found,
        tally=tally,
        faults="no faults",
        took_s=took_s,
    )


@contextlib.contextmanager
def workers(urls: Sequence[str], each: int, threads: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ready to begin, one for each URL (or several with commas between)."""
    running: list[subprocess.Popen[str]] = []
    try:
        for url in urls:
            command = [sys.executable, "-m", "tests.faults.state_worker", url, str(each)]
            running.append(
                subprocess.Popen(
                    [*command, str(threads)],
                    cwd=_ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        yield running
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


async def shared(
    what: str,
    urls: Sequence[str],
    each: int,
    *,
    threads: int = 1,
    faults: Callable[[], Awaitable[str]],
) -> Outcome:
    """One worker process for each URL, while `faults` happen; it says what did."""
    with workers(urls, each, threads) as running:
        for process in running:
            assert process.stdout is not None
            line = await anyio.to_thread.run_sync(process.stdout.readline)
            assert line == "ready\n", line
        began = time.monotonic()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = await faults()
        with anyio.fail_after(LIMIT_S):
            lines = [
                await anyio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
                for process in running
                if process.stdout is not None
            ]
        took_s = time.monotonic() - began
    tally = sum((Tally(json.loads(line)) for line in lines), Tally[str]())
    async with open_client(urls[0].split(","), wait=True) as client:
        found = (await client.get(ENTRY, strict=True)).value.state.n
    return Outcome(
        what=what,
        wanted=len(urls) * threads * each,
        found=found,
        tally=tally,
        faults=said,
        took_s=took_s,
    )


async def kills(server: serving.ServerProcess, count: int, chance: random.Random) -> str:
    """Kill the server and start it again, at random moments."""
    for _ in range(count):
        await anyio.sleep(chance.uniform(0.5, 2.0))
        await server.kill()
        await anyio.sleep(chance.uniform(0.0, 0.5))
        await server.start()
    return f"{count} kills" if count else "no faults"


async def network_faults(box: network_box.Box, killed: int, cut: int, chance: random.Random) -> str:
    """Servers of three are killed and started again, and cut off from all NATS nodes and healed."""
    faults = ["kill"] * killed + ["cut"] * cut
    chance.shuffle(faults)
    for fault in faults:
        await anyio.sleep(chance.uniform(1.0, 3.0))
        server = chance.choice(box.servers)
        if fault == "kill":
            await box.restart(server, chance.uniform(0.0, 0.5))
            continue
        await box.do(box.cluster.cut, server)
        await network_box.until_attached(box, {server: False}, 20.0)
        await anyio.sleep(chance.uniform(1.0, 3.0))
        await box.do(box.cluster.heal)
    said = [f"{killed} kills"] if killed else []
    said += [f"{cut} times one of three servers cut off"] if cut else []
    return ", ".join(said) or "no faults"


async def on_one_server(
    folder: pathlib.Path, kind: str, count: int, each: int, killed: int, seed: int
) -> Outcome:
    """`kind`: `threads` or `processes`."""
    async with serving.served(folder) as server:
        in_threads = kind == "threads"
        return await shared(
            f"{count} {kind} shared",
            [server.url] * (1 if in_threads else count),
            each,
            threads=count if in_threads else 1,
            faults=lambda: kills(server, killed, random.Random(seed)),
        )


async def on_three_servers(
    folder: pathlib.Path, kind: str, count: int, each: int, killed: int, cut: int, seed: int
) -> Outcome:
    """Each process knows one server alone: those of the one that is cut off have to wait.

    Threads are those of one process, which knows all three.
    """
    async with network_box.box(folder) as box:
        in_threads = kind == "threads"
        return await shared(
            f"{count} {kind} on three servers",
            [",".join(box.urls)] if in_threads else [box.urls[i % 3] for i in range(count)],
            each,
            threads=count if in_threads else 1,
            faults=lambda: network_faults(box, killed, cut, random.Random(seed)),
        )


async def run(options: argparse.Namespace) -> bool:
    fine = True
    for kind in options.only or ("alone", "threads", "processes"):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            if kind == "alone":
                outcome = await anyio.to_thread.run_sync(alone, options.count, options.each)
            elif options.cluster:
                outcome = await on_three_servers(
                    folder,
                    kind,
                    options.count,
                    options.each,
                    options.kills,
                    options.cuts,
                    options.seed,
                )
            else:
                outcome = await on_one_server(
                    folder, kind, options.count, options.each, options.kills, options.seed
                )
        print(outcome, flush=True)
        fine = fine and outcome.is_exact
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=8, help="threads, and processes")
    parser.add_argument("--each", type=int, default=5_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--cuts", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=("alone", "threads", "processes"))
    sys.exit(0 if anyio.run(run, parser.parse_args()) else 1)


if __name__ == "__main__":
    main()
