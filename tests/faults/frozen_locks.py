"""Locks whose holders are frozen: `python -m tests.faults.frozen_locks --locks 10000`.

Several processes add to one counter under one lock: each reads it, and writes it with the lock's
fence, and nothing else. Now and then a holder stops itself (SIGSTOP) between the two, and is let go
on when its session is over and the next one has had the lock. Then it writes and releases, late:
the write must be refused, and the release must free nobody else's lock. In the end the counter must
be the number of writes that were answered, each under a higher fence than the one before.

With `--unfenced` the writes carry no fence, the negative control: the checks must find losses. Exit
code 0 if everything was as it has to be, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field

import anyio
import anyio.to_thread

from moat_kv import Client, P, coord, errors, open_client
from tests.faults.serving import served

PROCESSES = 8
COUNTER = P("counter")
#: How long a process may be silent, in seconds.
TTL_S = 1.5
#: How long a holder stays frozen, in seconds: so long at least, and until the next one has written.
FROZEN_S = 1.6
#: So soon a process notices that it has lost its lock, in seconds; and the next one has written.
PATIENCE_S = 30.0


@dataclass(kw_only=True)
class Counts:
    """What one process has seen, or all."""

    locks: int = 0
    written: int = 0
    refused: int = 0
    """Writes that came too late."""
    frozen: int = 0
    wrong: int = 0
    """Writes that were refused though their lock had not been lost."""
    fences: list[int] = field(default_factory=list)
    """Of the writes that were answered."""


def work(url: str, locks: int, freeze: float, seed: int, *, fenced: bool) -> Counts:
    """One process' part."""
    chance, counts = random.Random(seed), Counts()
    with coord.Process(url, ttl_s=TTL_S) as process:
        while counts.locks < locks:
            lock = process.lock("counter")
            with lock:
                counts.locks += 1
                _add(process, lock, counts, frozen=chance.random() < freeze, fenced=fenced)
    return counts


def _add(
    process: coord.Process, lock: coord.Lock, counts: Counts, *, frozen: bool, fenced: bool
) -> None:
    present = process.client.get(COUNTER).get("value", 0)
    if frozen:
        counts.frozen += 1
        os.kill(os.getpid(), signal.SIGSTOP)
    fence = lock.guard if fenced else None
    try:
        process.client.set(COUNTER, present + 1, fence=fence)
    except errors.StaleFence:
        counts.refused += 1
        # The loss is noticed a little after the process goes on.
        if not lock.lost.wait(PATIENCE_S):
            counts.wrong += 1
    else:
        counts.written += 1
        counts.fences.append(lock.fence)


async def run(folder: pathlib.Path, locks: int, freezes: int, *, fenced: bool) -> list[str]:
    """Everything, on a server of its own; a line for each fault."""
    async with served(folder) as server:
        words = [sys.executable, "-m", "tests.faults.frozen_locks", "--url", server.url]
        words += ["--locks", str(locks // PROCESSES), "--freeze", str(freezes / locks)]
        words += [] if fenced else ["--unfenced"]
        children = [_started([*words, "--seed", str(seed)]) for seed in range(PROCESSES)]
        try:
            began = time.monotonic()
            async with open_client(server.url) as client, anyio.create_task_group() as tasks:
                tasks.start_soon(_let_go_on, children, client)
                told = [await anyio.to_thread.run_sync(_result, each) for each in children]
                tasks.cancel_scope.cancel()
            took_s = time.monotonic() - began
        finally:
            for child in children:
                child.kill()
                child.wait()
        async with open_client(server.url) as client:
            counter = (await client.get(COUNTER)).value
            left = await client.list(P(":.moat.kv.lock.counter.:.line"))
    return _judged(told, counter, len(left), took_s)


def _started(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _result(child: subprocess.Popen[str]) -> Counts:
    out, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"a process ended with code {child.returncode}")
    return Counts(**json.loads(out))


async def _let_go_on(children: list[subprocess.Popen[str]], client: Client) -> None:
    """Wake up those that have stopped themselves, each when the next one has written."""
    since: dict[int, tuple[float, int]] = {}
    while True:
        await anyio.sleep(0.05)
        # The last one has nobody to wait for.
        alone = sum(child.poll() is None for child in children) == 1
        for child in children:
            if child.poll() is not None or not _is_stopped(child.pid):
                since.pop(child.pid, None)
                continue
            now, rev = time.monotonic(), (await client.get(COUNTER)).rev
            stopped_at, before = since.setdefault(child.pid, (now, rev))
            is_late = alone or rev > before or now - stopped_at >= PATIENCE_S
            if is_late and now - stopped_at >= FROZEN_S:
                child.send_signal(signal.SIGCONT)
                since.pop(child.pid)


def _is_stopped(pid: int) -> bool:
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended, and was asked for its code
        return False
    return text.rpartition(")")[2].split()[0] == "T"


def _judged(all_: list[Counts], counter: int, left: int, took_s: float) -> list[str]:
    total = Counts(
        locks=sum(each.locks for each in all_),
        written=sum(each.written for each in all_),
        refused=sum(each.refused for each in all_),
        frozen=sum(each.frozen for each in all_),
        wrong=sum(each.wrong for each in all_),
    )
    print(
        f"{total.locks} locks among {len(all_)} processes in {took_s:.0f} s, {total.frozen} holders"
        f" frozen for {FROZEN_S:g} s or more (time to live {TTL_S:g} s): counter {counter},"
        f" {total.written} writes answered, {total.refused} refused as late,"
        f" {total.wrong} refused without a loss, {left} tickets left",
        flush=True,
    )
    faults = []
    if counter != total.written:
        faults.append(f"the counter is {counter}, {total.written} writes were answered")
    if total.wrong:
        faults.append(f"{total.wrong} writes were refused though their lock was not lost")
    if left:
        faults.append(f"{left} tickets are left")
    for each in all_:
        if each.fences != sorted(set(each.fences)):
            faults.append("a fence did not rise")
    fences = [fence for each in all_ for fence in each.fences]
    if len(fences) != len(set(fences)):
        faults.append("two holders had the same fence")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--locks", type=int, default=10_000)
    parser.add_argument("--freezes", type=int, default=24, help="how many, about")
    parser.add_argument("--unfenced", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--freeze", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    fenced = not options.unfenced
    if options.url is not None:
        counts = work(options.url, options.locks, options.freeze, options.seed, fenced=fenced)
        print(json.dumps(asdict(counts)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)

        async def all_() -> list[str]:
            return await run(place, options.locks, options.freezes, fenced=fenced)

        faults = anyio.run(all_)
    print("\n".join(faults) or "no faults")
    return 1 if bool(faults) == fenced else 0


if __name__ == "__main__":
    sys.exit(main())
