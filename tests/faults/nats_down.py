"""All of NATS down, and servers that restart meanwhile: `python -m tests.faults.nats_down`.

Clients write without pause through three servers. All NATS nodes are killed; servers are killed and
started again one after the other, and each time one is up, its clients go on. All that time every
server that is up has to answer reads and to keep plain writes. After `--seconds` NATS is started
again: then all trees have to be equal, with every write that was answered there, or replaced, or
among the conflicts. Exit code 0 if everything was as it has to be, else 1.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sqlite3
import sys
import tempfile
import time
from dataclasses import dataclass, field

import anyio

from moat_kv import P, errors, open_client
from tests.faults import network_box, network_writers
from tests.faults.network_box import Box

#: A read, or a plain write, is answered within this time, in seconds.
ANSWER_S = 3.0
#: Every server has noticed by then, in seconds.
NOTICE_S = 15.0
SETTLE_S = 60.0
_LOOK_S = 0.05
PLACES = (*network_writers.PLACES, "before", "forgotten")
#: So many writes are thrown away for the negative control.
FORGOTTEN = 10
#: An outage goes on until so much was read and so many writes wait; for so long at most, in
#: seconds.
ENOUGH, ENOUGH_WITHIN_S = 60, 40.0


@dataclass(kw_only=True)
class Counts:
    """What was seen while NATS was down."""

    reads: int = 0
    slowest_read_s: float = 0.0
    restarts: int = 0
    slowest_start_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.reads} reads answered, the slowest after {self.slowest_read_s:.2f} s;"
            f" {self.restarts} restarts of servers, up again after {self.slowest_start_s:.1f} s"
            f" at most; {len(self.wrong)} wrong"
        )


class Outage:
    """From the death of all nodes to their return."""

    def __init__(
        self,
        box: Box,
        counts: Counts,
        chance: random.Random,
        *,
        forget: bool = False,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._box, self._counts, self._chance, self._forget = box, counts, chance, forget
        self._answer_s = answer_s
        #: The one that is not up at present.
        self._restarting = ""
        #: When each was started last.
        self._up_at: dict[str, float] = {}

    async def last(self, seconds: float) -> None:
        """It begins now; all nodes are up again at the end."""
        box = self._box
        await box.do(box.cluster.kill, *box.nodes)
        began = time.monotonic()
        try:
            async with anyio.create_task_group() as tasks:
                for server in box.servers:
                    tasks.start_soon(self._read, server)
                await network_box.until_attached(box, dict.fromkeys(box.servers, False), NOTICE_S)
                while True:
                    await self._restart(self._chance.choice(box.servers))
                    left_s = seconds - (time.monotonic() - began)
                    if left_s <= 0:
                        break
                    await anyio.sleep(min(left_s, self._chance.uniform(1.0, 4.0)))
                with anyio.move_on_after(ENOUGH_WITHIN_S):
                    while self._counts.reads < ENOUGH or self._waiting() < ENOUGH:
                        await anyio.sleep(_LOOK_S)
                if self._forget:
                    await self._forget_some(self._chance.choice(box.servers))
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await box.do(box.cluster.start, *box.nodes)

    def _waiting(self) -> int:
        return sum(one.outcome == "pending" for one in self._box.recorder.operations)

    async def _restart(self, server: str) -> None:
        self._restarting = server
        began = time.monotonic()
        await self._box.restart(server, 0.0)
        took_s = time.monotonic() - began
        self._counts.restarts += 1
        self._counts.slowest_start_s = max(self._counts.slowest_start_s, took_s)
        self._up_at[server] = time.monotonic()
        self._restarting = ""

    async def _forget_some(self, server: str) -> None:
        """Write something there, which waits, and throw all away that waits."""
        box, cluster = self._box, self._box.cluster
        async with open_client(box.url(server), wait=True) as client:
            for nth in range(FORGOTTEN):
                key = f"forgotten.k{nth}"
                number = box.recorder.begin(f"forget@{server}", key, "write", value=key)
                await client.set(P(key), key)
                box.recorder.end(number, "pending", value=key)
        self._restarting = server
        await box.do(cluster.kill, server)
        (file,) = (cluster.folder / server).glob("copy.*.sqlite")
        with sqlite3.connect(file) as connection:
            connection.execute("DELETE FROM pending")
        connection.close()
        await box.do(cluster.start, server)

    async def _read(self, server: str) -> None:
        """What was there before has to be answered by each server, whenever it is up."""
        while True:
            began = time.monotonic()
            try:
                async with open_client(self._box.url(server)) as client:
                    for _ in range(20):
                        began = time.monotonic()
                        with anyio.fail_after(self._answer_s):
                            found = (await client.get(P("before.it"))).get("value")
                        self._read_took(server, time.monotonic() - began, found)
                        await anyio.sleep(_LOOK_S)
            except (errors.MoatKvError, TimeoutError) as exc:
                # (What it was asked before it was up may fail long afterwards.)
                if self._restarting != server and began >= self._up_at.get(server, 0.0):
                    self._counts.wrong.append(f"{server}: a read: {exc!r}")
                await anyio.sleep(_LOOK_S)

    def _read_took(self, server: str, took_s: float, found: object) -> None:
        self._counts.reads += 1
        self._counts.slowest_read_s = max(self._counts.slowest_read_s, took_s)
        if found != "there":
            self._counts.wrong.append(f"{server}: a read gave {found}")


async def play(
    box: Box,
    rounds: int,
    seconds: float,
    seed: int,
    pause_s: float,
    *,
    forget: bool = False,
    answer_s: float = ANSWER_S,
) -> tuple[Counts, network_box.Verdict]:
    """So many outages of that length. `forget`: the negative control.

    `answer_s`: a read is answered within this time.
    """
    counts, chance = Counts(), random.Random(seed)
    async with network_box.clients_of(box) as clients:
        number = box.recorder.begin("before@s1", "before.it", "write", value="there")
        result = await network_box.agreed(
            lambda: clients[0].set(P("before.it"), "there", strict=True)
        )
        box.recorder.end(number, "ok", value="there", rev=result.rev)
        for client in clients:
            await network_box.agreed(
                lambda client=client: client.get(P("before.it"), strict=True)  # type: ignore[misc]
            )
    for number in range(1, rounds + 1):
        began = time.monotonic()
        async with network_writers.writing(box, seed + 1000 * number, pause_s=pause_s):
            await anyio.sleep(1.0)
            outage = Outage(box, counts, chance, forget=forget, answer_s=answer_s)
            await outage.last(seconds)
        text = network_writers.counts(box, time.monotonic() - began)
        settled_s = await network_box.settle(box, SETTLE_S)
        print(f"{number} outages: {text}; in order after {settled_s:.1f} s", flush=True)
        if settled_s >= SETTLE_S:
            counts.wrong.append(f"not in order {SETTLE_S:g} s after NATS was back")
    verdict = await network_box.look(box, PLACES)
    return counts, verdict


async def run(folder: pathlib.Path, options: argparse.Namespace) -> int:
    """The exit code."""
    rounds = 1 if options.forget else options.rounds
    pause_s, forget = network_writers.PAUSE_S, options.forget
    async with network_box.box(folder) as box:
        counts, verdict = await play(
            box, rounds, options.seconds, options.seed, pause_s, forget=forget
        )
    print(counts)
    print(verdict)
    if forget:
        found = sum(one.key.startswith("forgotten.") for one in verdict.found.pending_lost)
        print(f"{FORGOTTEN} writes that waited were thrown away; {found} found to be lost")
        return 0 if found == FORGOTTEN else 1
    for line in [*counts.wrong[:20], *verdict.details()]:
        print(line)
    return 0 if verdict.is_fine and not counts.wrong else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="so many times all of NATS is down")
    parser.add_argument("--seconds", type=float, default=120.0, help="for so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--forget", action="store_true", help="the negative control")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options)


if __name__ == "__main__":
    sys.exit(main())
