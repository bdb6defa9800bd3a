"""Is one server a register? `python -m tests.faults.linearizable --rounds 100`.

In each round eight clients read, set, compare-and-set and delete a few keys of one server on
SQLite, and at a random moment it is killed and started again on the same file. What they asked and
were answered is checked for linearizability at the end (`linearizability`), all rounds together:
what a kill left open may show in any later one.

Two negative controls, which must be found: `--sync 1s`, with which a kill loses what was answered,
and `--liar`, where one client in a while notes an older state than it was told. Exit code 0 if
everything was as it has to be, else 1. `--history FILE` keeps the history, to be checked again.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack

import anyio

from moat_kv import Client
from tests.faults import linearizability
from tests.faults.history import Operation, Recorder
from tests.faults.kill_server import clients_of
from tests.faults.linearizability import Verdict
from tests.faults.recording import LineGone, Recorded
from tests.faults.serving import ServerProcess, eventually, served

CLIENTS = 8
KEYS = ("register.one", "register.two", "register.three")
#: A client that lies does so in this share of its reads that could be wrong.
LIES = 0.02
#: So many operations are under way or over in a round before the kill; on a slow disk that may take
#: a while.
ENOUGH = 200


class Work:
    """What the clients of all rounds do."""

    def __init__(self, recorder: Recorder, chance: random.Random) -> None:
        self.recorder = recorder
        self.kills = 0
        self._chance = chance
        self._values = 0

    async def one_round(self, server: ServerProcess) -> None:
        """Work until the server is killed, then start it again."""
        while_s = self._chance.uniform(0.1, 0.6)
        enough = len(self.recorder.operations) + ENOUGH
        async with clients_of(server, CLIENTS) as clients:
            async with anyio.create_task_group() as tasks:
                for index, client in enumerate(clients):
                    tasks.start_soon(self._work, client, f"c{index}")
                await anyio.sleep(while_s)
                await eventually(lambda: len(self.recorder.operations) >= enough)
                await server.kill()
        self.kills += 1
        await server.start()

    async def last_reads(self, server: ServerProcess) -> None:
        """What is there in the end."""
        async with clients_of(server, 1) as clients:
            recorded = Recorded(clients[0], self.recorder, "c0")
            for key in KEYS:
                await recorded.read(key)

    async def _work(self, client: Client, name: str) -> None:
        recorded = Recorded(client, self.recorder, name)
        try:
            while True:
                await self._one(recorded)
        except LineGone:
            return

    async def _one(self, recorded: Recorded) -> None:
        key = self._chance.choice(KEYS)
        kind = self._chance.random()
        if kind < 0.4:
            await recorded.read(key)
        elif kind < 0.5:
            await recorded.delete(key, expect=self._chance.choice([None, recorded.known.get(key)]))
        else:
            self._values += 1
            expect = recorded.known.get(key, 0) if kind < 0.85 else None
            await recorded.write(key, self._values, expect=expect)


def with_lies(
    operations: list[Operation], chance: random.Random, *, share: float = LIES
) -> list[Operation]:
    """The same history, but in a few reads a client tells what it had read the time before."""
    before: dict[tuple[str, str], Operation] = {}
    told = []
    for one in operations:
        if one.kind == "read" and one.outcome == "ok":
            place = one.client, one.key
            old = before.get(place)
            before[place] = one
            if old is not None and old.rev != one.rev and chance.random() < share:
                one = dataclasses.replace(one, rev=old.rev, value=old.value)
        told.append(one)
    return told


def summary(work: Work, operations: list[Operation], verdicts: list[Verdict], took_s: float) -> str:
    """One line of counts."""
    outcomes = Counter(one.outcome for one in operations)
    kinds = Counter(one.kind for one in operations if one.outcome == "ok")
    answers = Counter(verdict.answer for verdict in verdicts)
    conflicts = sum(one.error == "Conflict" for one in operations)
    return (
        f"{work.kills} kills, {CLIENTS} clients, {len(KEYS)} keys: {len(operations)} operations,"
        f" {outcomes['ok']} ok ({', '.join(f'{kinds[kind]} {kind}' for kind in sorted(kinds))}),"
        f" {outcomes['failed']} failed ({conflicts} conflicts), {outcomes['unknown']} unknown;"
        f" keys: {answers['fine']} fine, {answers['wrong']} wrong, {answers['unknown']} given up;"
        f" checked in {took_s:.1f} s"
    )


async def play(folder: pathlib.Path, rounds: int, seed: int, sync: str, recorder: Recorder) -> Work:
    """The rounds; whatever became of the operations is in the recorder."""
    work = Work(recorder, random.Random(seed))
    async with served(folder, options=["--sync", sync]) as server:
        for number in range(1, rounds + 1):
            await work.one_round(server)
            if number % 10 == 0:
                print(f"{number} kills, {len(recorder.operations)} operations", flush=True)
        await work.last_reads(server)
    return work


async def run(folder: pathlib.Path, options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        file = stack.enter_context(options.history.open("w")) if options.history else None
        recorder = Recorder(file)
        work = await play(folder, options.rounds, options.seed, options.sync, recorder)
        operations = recorder.close()
    if options.liar:
        operations = with_lies(operations, random.Random(options.seed))
    began = time.monotonic()
    verdicts = linearizability.check(operations)
    for verdict in verdicts:
        if not verdict.is_fine:
            print(verdict)
    print(summary(work, operations, verdicts, time.monotonic() - began))
    must_be_wrong = options.liar or options.sync != "0"
    if must_be_wrong:
        return 0 if any(verdict.answer == "wrong" for verdict in verdicts) else 1
    return 0 if all(verdict.is_fine for verdict in verdicts) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sync", default="0", help="as of `moat kv server`; 0: always")
    parser.add_argument("--liar", action="store_true", help="spoil the history afterwards")
    parser.add_argument("--history", type=pathlib.Path, help="keep the history there, JSON lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options)


if __name__ == "__main__":
    sys.exit(main())
