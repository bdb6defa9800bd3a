"""Power cuts under writing: `python -m tests.faults.powercut --rounds 100`.

Each round runs a real engine on a simulated disk, cuts the power at a random operation of the disk,
starts again from what was synced, and looks for every write that was answered. In half of the
rounds random sectors survive that were written but not synced. With `--faults` syncs fail and the
disk runs full now and then before the power goes. `--synchronous normal` is the negative control:
it must show loss. Exit code 0 if nothing was lost, 1 otherwise.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from moat_kv import errors
from moat_kv.engine import sqlite, sqlite_connection
from moat_kv.testing import engine_probe, powercut
from tests.faults import crash_check


class LazySync:
    """A connection that syncs at checkpoints only, whatever it is told."""

    def __init__(self, connection: sqlite_connection.Connection) -> None:
        self._connection = connection

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> sqlite_connection.Cursor:
        if sql == "PRAGMA synchronous=FULL":
            sql = "PRAGMA synchronous=NORMAL"
        return self._connection.execute(sql, parameters)

    def close(self) -> None:
        self._connection.close()


@dataclass(kw_only=True)
class Round:
    """What happened before the power went, and what was found after."""

    answered: int
    """Groups."""
    refused: int
    faults: list[str]
    """See `crash_check.check`."""
    numbers: list[int]
    """None of them if the log was refused."""


async def one_round(
    file: pathlib.Path,
    seed: int,
    numbers: Sequence[int],
    *,
    lazy: bool = False,
    faults: bool = False,
) -> Round:
    """Write until the power goes, start again, and check."""
    chance = random.Random(seed)
    survival = 0.5 if chance.random() < 0.5 else 0.0
    with powercut.SimulatedDisk(seed=seed, survival=survival) as disk:

        def connect(path: str) -> sqlite_connection.Connection:
            connection = disk.connect(path)
            return LazySync(connection) if lazy else connection

        engine = sqlite.SqliteEngine(file, connect=connect, history=2, compact_after=200)
        writers = crash_check.Writers(engine, numbers, persist=faults)
        async with engine.running(engine_probe.DictReplica()):
            # Sometimes within a commit, sometimes within compaction or a checkpoint.
            disk.cut_after(int(10 ** chance.uniform(1, 3.5)))
            writers.start()
            with anyio.fail_after(60):
                while disk.has_power:
                    if faults:
                        _disturb(disk, chance)
                    await anyio.sleep(0.002)
            writers.stopped = True
        disk.restore()
    try:
        found, there = await crash_check.check(file, writers.last, writers.asked)
    except errors.StorageDamaged as exc:
        found, there = [f"refused: {exc}"], []
    return Round(answered=writers.count, refused=writers.refused, faults=found, numbers=there)


def _disturb(disk: powercut.SimulatedDisk, chance: random.Random) -> None:
    """Every now and then something else goes wrong, or is well again."""
    if disk.room_bytes is not None:
        if chance.random() < 0.3:
            disk.room_bytes = None
    elif chance.random() < 0.1:
        disk.room_bytes = chance.randrange(20_000)
    if chance.random() < 0.1:
        disk.failing_syncs = chance.choice([1, 1, 1, 2, 3, 5])


async def run(rounds: int, seed: int, *, lazy: bool = False, faults: bool = False) -> list[Round]:
    """That many rounds on one file; a log that is refused is followed by a new one."""
    done: list[Round] = []
    with tempfile.TemporaryDirectory() as folder:
        file, numbers = pathlib.Path(folder) / "log.sqlite", [0] * crash_check.WRITERS
        for number in range(rounds):
            result = await one_round(file, seed + number, numbers, lazy=lazy, faults=faults)
            done.append(result)
            for line in result.faults if not lazy else ():
                print(f"round {number} (seed {seed + number}): {line}", flush=True)
            numbers = result.numbers
            if not numbers:
                file = file.with_name(f"log-{number}.sqlite")
                numbers = [0] * crash_check.WRITERS
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--synchronous", choices=["full", "normal"], default="full")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--faults", action="store_true", help="fail syncs and fill the disk too")
    options = parser.parse_args()
    logging.getLogger("moat_kv").setLevel(logging.CRITICAL)  # the disk is meant to fail
    lazy = options.synchronous == "normal"
    done = anyio.run(
        lambda: run(options.rounds, options.seed, lazy=lazy, faults=options.faults),
        backend=options.backend,
    )
    lost = sum(len(result.faults) for result in done)
    print(
        f"{len(done)} power cuts, synchronous={options.synchronous}:"
        f" {sum(result.answered for result in done)} groups answered,"
        f" {sum(result.refused for result in done)} refused,"
        f" {lost} writes lost, in {sum(bool(result.faults) for result in done)} rounds"
    )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
