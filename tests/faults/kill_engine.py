"""kill -9 under writing: `python -m tests.faults.kill_engine --rounds 100`.

Each round starts a process that writes through a real engine and says on its standard output what
was answered, kills it with SIGKILL after a random while, and looks in the file for every write that
was answered. The file is the same in all rounds. With `--sync 0.2` (relaxed saving) what was
answered last may be missing, so only the epoch is checked then: it must have changed if something
was written. Exit code 0 if nothing was lost, 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Literal

import anyio

from moat_kv.engine import sqlite
from moat_kv.testing import engine_probe
from tests.faults import crash_check

_ROOT = pathlib.Path(__file__).parents[2]


async def write(file: pathlib.Path, numbers: Sequence[int], sync: float) -> None:
    """The process that gets killed."""
    engine = _engine(file, sync)

    def answered(index: int, number: int) -> None:
        # One small write to a pipe: it is there whole, or not at all.
        os.write(1, b"%d %d\n" % (index, number))

    async with engine.running(engine_probe.DictReplica()):
        writers = crash_check.Writers(engine, numbers, answered)
        os.write(1, b"epoch %s\n" % engine.epoch.encode())
        writers.start()
        await anyio.sleep_forever()


def _engine(file: pathlib.Path, sync: float) -> sqlite.SqliteEngine:
    when: Literal["always"] | float = sync or "always"
    return sqlite.SqliteEngine(file, sync=when, history=3, compact_after=300)


def killed_writer(
    file: pathlib.Path,
    numbers: Sequence[int],
    after_s: float,
    *,
    sync: float = 0.0,
    at_least: int = 0,
) -> tuple[list[int], str, int]:
    """Write for `after_s` from the first answer on; what was answered, the epoch, how often.

    `at_least`: and until so many were answered, however slow the disk is.
    """
    command = [sys.executable, "-m", "tests.faults.kill_engine", "--child", str(file)]
    command += ["--numbers", ",".join(map(str, numbers)), "--sync", str(sync)]
    last = list(numbers)
    epoch = ""
    count = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=_ROOT) as process:
        assert process.stdout is not None
        deadline: float | None = None
        for line in process.stdout:
            word, text = line.decode().split()
            if word == "epoch":
                epoch = text
                continue
            last[int(word)] = int(text)
            count += 1
            if deadline is None:
                deadline = time.monotonic() + after_s
            elif deadline > 0 and time.monotonic() >= deadline and count > at_least:
                process.send_signal(signal.SIGKILL)
                deadline = 0.0  # what was answered before is still in the pipe
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the writer ended by itself, exit code {process.returncode}")
    return last, epoch, count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sync", type=float, default=0.0, help="seconds; 0: always")
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--numbers", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        numbers = [int(number) for number in options.numbers.split(",")]
        anyio.run(write, options.child, numbers, options.sync)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return _rounds(pathlib.Path(folder) / "log.sqlite", options)


def _rounds(file: pathlib.Path, options: argparse.Namespace) -> int:
    chance = random.Random(options.seed)
    numbers = [0] * crash_check.WRITERS
    writes = lost = 0
    written = 0.0
    for number in range(options.rounds):
        while_s = chance.uniform(0.05, 0.5)
        last, epoch, count = killed_writer(file, numbers, while_s, sync=options.sync)
        if options.sync:
            lines, numbers = anyio.run(_check_epoch, file, last, epoch, options.sync)
        else:
            lines, numbers = anyio.run(crash_check.check, file, last)
        writes += count
        written += while_s
        lost += len(lines)
        for line in lines:
            print(f"round {number}: {line}", flush=True)
    print(
        f"{options.rounds} kills, sync={options.sync or 'always'}: {writes} groups answered"
        f" ({writes / written:.0f} a second), {lost} lost"
    )
    return 1 if lost else 0


async def _check_epoch(
    file: pathlib.Path, last: Sequence[int], epoch: str, sync: float
) -> tuple[list[str], list[int]]:
    engine = _engine(file, sync)
    lost, numbers = await crash_check.check(file, [0] * len(last), engine=engine)
    if engine.epoch == epoch:
        lost.append(f"the epoch is still {epoch}")
    return lost, [max(pair) for pair in zip(last, numbers, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
