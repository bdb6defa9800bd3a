"""kill -9 of a server under writing: `python -m tests.faults.kill_server --rounds 100`.

Each round has several clients write through the real server process: sets of distinct paths,
deletions, batches, and compare-and-sets of a few hot paths. At a random moment the server is killed
and started again on the same file. Then every write that was answered must be there, or a later one
that was sent; batches whole or not at all; no revision given out twice; the epoch the same.

With `--sync 1s` it is the other way round, the negative control: the checks must find losses, the
epoch must change each time, and revisions must go on above all that were given out. Exit code 0 if
everything was as it has to be, else 1.
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

from moat_kv import Client, open_client
from tests.faults import writers
from tests.faults.journal import Journal
from tests.faults.serving import ServerProcess, eventually, served

CLIENTS = 4
#: So many writes are answered before a kill; on a slow disk that may take a while.
ANSWERED = 60


@dataclass(kw_only=True)
class Counts:
    """Of all rounds."""

    kills: int = 0
    writing_s: float = 0.0
    restarts_s: list[float] = field(default_factory=list)
    lost: int = 0
    """Lines of the journal."""
    wrong: int = 0
    """Epochs and revisions that are not as they have to be."""


@asynccontextmanager
async def clients_of(server: ServerProcess, count: int = CLIENTS) -> AsyncIterator[list[Client]]:
    """Clients that do not come back when the line breaks; every second one over TCP."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                open_client(server.tcp_url if index % 2 else server.url, reconnect=False)
            )
            for index in range(count)
        ]


async def one_round(
    server: ServerProcess, journal: Journal, chance: random.Random, counts: Counts, *, relaxed: bool
) -> list[str]:
    """Write, kill, start again, look; a line for each fault."""
    while_s = chance.uniform(0.15, 1.0)
    async with clients_of(server) as clients:
        epoch = clients[0].server.epoch
        work = writers.Writers(journal, chance)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work.run, clients)
            began, enough = time.monotonic(), journal.answered + ANSWERED
            await anyio.sleep(while_s)
            await eventually(lambda: journal.answered >= enough)
            await server.kill()
            counts.writing_s += time.monotonic() - began
    counts.kills += 1
    began = time.monotonic()
    await server.start()
    counts.restarts_s.append(time.monotonic() - began)
    return await _look(server, journal, epoch, counts, relaxed=relaxed)


async def _look(
    server: ServerProcess, journal: Journal, epoch: str, counts: Counts, *, relaxed: bool
) -> list[str]:
    highest = journal.highest
    async with open_client(server.url, reconnect=False) as client:
        faults = journal.faults(await writers.shown(client))
        counts.lost += len(faults)
        wrong = []
        if (client.server.epoch == epoch) == relaxed:
            wrong.append(f"the epoch is {client.server.epoch}, it was {epoch}")
        if client.server.revision < highest:
            wrong.append(f"the revision is {client.server.revision}, {highest} was given out")
        counts.wrong += len(wrong)
        return wrong if relaxed else faults + wrong


async def run(folder: pathlib.Path, rounds: int, seed: int, sync: str) -> int:
    chance = random.Random(seed)
    journal, counts = Journal(), Counts()
    relaxed = sync != "0"
    async with served(folder, options=["--sync", sync]) as server:
        for number in range(1, rounds + 1):
            for line in await one_round(server, journal, chance, counts, relaxed=relaxed):
                print(f"round {number}: {line}", flush=True)
            if number % 10 == 0 or number == rounds:
                print(_summary(journal, counts, sync), flush=True)
    return 1 if counts.wrong or (counts.lost > 0) != relaxed else 0


def _summary(journal: Journal, counts: Counts, sync: str) -> str:
    rate = journal.answered / counts.writing_s
    restart_s = sorted(counts.restarts_s)[len(counts.restarts_s) // 2]
    return (
        f"{counts.kills} kills, --sync {sync}: {journal.answered} writes answered"
        f" ({rate:.0f} a second), {journal.refused} refused, {journal.unanswered} unanswered;"
        f" {counts.lost} lost, {counts.wrong} epochs or revisions wrong;"
        f" restart {restart_s:.2f} s (median)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sync", default="0", help="as of `moat kv server`; 0: always")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options.rounds, options.seed, options.sync)


if __name__ == "__main__":
    sys.exit(main())
