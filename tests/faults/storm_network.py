"""All that can go wrong with a network, at the same time: `python -m tests.faults.storm_network`.

Three NATS nodes and three servers; clients write without pause (plainly, by compare-and-set),
others use registers that ask for the network's word. For `--seconds` each round, any is killed,
frozen, cut off from any other, in both directions or one, all links are slow, and things are set
right again, one upon the other in any order. Then all is set right. After each round all trees are
equal, and no write waits, within 60 s. In the end every write that was answered is there, or
replaced, or among the conflicts, no earlier write is on top of a later one, and what was strict is
linearizable.

Exit code 0 if everything was as it has to be, else 1.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field

import anyio

from tests.faults import network_box, network_register, network_writers, undone
from tests.faults.history import Operation
from tests.faults.linearizability import Verdict
from tests.faults.network_box import Box

#: What happens, and how often in comparison.
FAULTS = {"kill": 4, "freeze": 3, "cut": 3, "one-way": 1, "slow": 1, "reset": 1}
#: Something new happens after so long, and lasts for so long, in seconds.
NEXT_S, LASTS_S = (0.5, 4.0), (0.5, 6.0)
SETTLE_S = 60.0


@dataclass(kw_only=True)
class Counts:
    """What was done in all rounds."""

    faults: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    undone: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{self.faults[kind]} {kind}" for kind in FAULTS)
        return (
            f"{self.faults.total()} faults ({faults}); in order {self.slowest_s:.1f} s after the"
            f" last of a round at most, {len(self.late)} times too late, {len(self.undone)} undone"
        )


class Storm:
    """Faults upon faults."""

    def __init__(self, box: Box, counts: Counts, chance: random.Random) -> None:
        self._box, self._counts, self._chance = box, counts, chance
        self._members = (*box.servers, *box.nodes)
        # What is dead or frozen at present; each is made well by the task that has put it there.
        self._ill: set[str] = set()

    async def last(self, seconds: float) -> None:
        """For so long, and until all is right again."""
        async with anyio.create_task_group() as tasks:
            with anyio.move_on_after(seconds):
                while True:
                    await anyio.sleep(self._chance.uniform(*NEXT_S))
                    (kind,) = self._chance.choices(list(FAULTS), list(FAULTS.values()))
                    tasks.start_soon(self._do, kind, self._chance.uniform(*LASTS_S))
        await self._box.do(self._box.cluster.slow)
        await self._box.do(self._box.cluster.heal)

    async def _do(self, kind: str, lasts_s: float) -> None:
        cluster, do = self._box.cluster, self._box.do
        one, other = self._chance.sample(self._members, 2)
        if kind in ("kill", "freeze"):
            if one in self._ill:
                return
            self._ill.add(one)
            await do(cluster.kill if kind == "kill" else cluster.freeze, one)
            await anyio.sleep(lasts_s)
            await do(cluster.start if kind == "kill" else cluster.thaw, one)
            self._ill.discard(one)
        elif kind == "slow":
            await do(cluster.slow, self._chance.uniform(0.0, 0.2), hold_share=0.05)
            await anyio.sleep(lasts_s)
            await do(cluster.slow)
        elif kind == "reset":
            await do(cluster.heal, reset=True)
        else:
            others = [other] if self._chance.random() < 0.5 else []
            if one in self._box.servers and other in self._box.servers:
                others = []  # there is no link between servers
            await do(cluster.cut, one, *others, one_way=kind == "one-way")
            await anyio.sleep(lasts_s)
            await do(cluster.heal, one, reset=self._chance.random() < 0.3)
        self._counts.faults[kind] += 1


async def play(
    box: Box, rounds: int, seconds: float, seed: int
) -> tuple[Counts, network_box.Verdict, list[Operation], list[Verdict]]:
    """So many rounds."""
    counts, chance = Counts(), random.Random(seed)
    chance_of_clients = random.Random(seed + 1)
    work = network_register.Registers(box=box, chance=chance_of_clients, plain_writes=True)
    began = time.monotonic()
    for number in range(1, rounds + 1):
        async with work.used(), network_writers.writing(box, seed + 1000 * number):
            await Storm(box, counts, chance).last(seconds)
        settled_s = await network_box.settle(box, SETTLE_S)
        counts.slowest_s = max(counts.slowest_s, settled_s)
        if settled_s >= SETTLE_S:
            facts = [await box.facts(server) for server in box.servers]
            states = [f"{one.get('attached')}, {one.get('outbox')} waiting" for one in facts]
            counts.late.append(f"round {number}: not in order after {SETTLE_S:g} s: {states}")
        await work.collect()
        text = network_writers.counts(box, time.monotonic() - began)
        print(f"{number} rounds: {text}; {counts}", flush=True)
    await work.last_reads()
    operations = work.operations()
    # (What was given up here may go on in a server for a while.)
    found = undone.find(operations, work.logs, outcomes=("ok", "pending"))
    counts.undone += map(str, found)
    verdicts = await anyio.to_thread.run_sync(network_register.judge, operations)
    verdict = await network_box.look(box, network_writers.PLACES)
    return counts, verdict, operations, verdicts


async def run(folder: pathlib.Path, rounds: int, seconds: float, seed: int) -> int:
    """The exit code."""
    async with network_box.box(folder) as box:
        counts, verdict, operations, verdicts = await play(box, rounds, seconds, seed)
    print(f"{counts}; {verdict}")
    print(network_register.counts(operations, verdicts))
    wrong = [str(one) for one in verdicts if not one.is_fine]
    for line in [*counts.late, *counts.undone[:20], *verdict.details(), *wrong]:
        print(line)
    return 0 if verdict.is_fine and not counts.late and not counts.undone and not wrong else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=40.0, help="of faults in each round")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options.rounds, options.seconds, options.seed)


if __name__ == "__main__":
    sys.exit(main())
