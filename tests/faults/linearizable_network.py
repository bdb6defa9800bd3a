"""Is a network a register? `python -m tests.faults.linearizable_network --rounds 20`.

Eight clients over three servers ask for the network's word: strict reads, sets and
compare-and-sets of a few keys. In each round something bad happens: a server or a NATS node is
killed and started again, or the network is split and healed. What was answered is checked for
linearizability at the end (`linearizability`), all rounds together.

`--plain-reads` is the negative control: now and then clients read what their server shows, which
in a split is old. Taken for the network's word, the checker must find that.

Exit code 0 if everything was as it has to be, else 1.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence

import anyio

from tests.faults import network_box, network_register
from tests.faults.history import Operation
from tests.faults.linearizability import Verdict
from tests.faults.network_box import Box

KINDS = ("server", "node", "split")
#: All is in order again so soon after a fault, in seconds.
SETTLE_S = 40.0


async def disturb(box: Box, kind: str, chance: random.Random) -> None:
    """One fault, from its beginning to its end."""
    server, node = network_box.pick_side(box, chance)
    await anyio.sleep(chance.uniform(0.5, 1.5))
    if kind == "server":
        await box.restart(server, chance.uniform(0, 1.0))
    elif kind == "node":
        leader = await box.do(box.cluster.leader)
        if leader is not None and chance.random() < 0.5:
            node = leader
        await box.restart(node, chance.uniform(0, 3.0))
    else:
        others = [name for name in (*box.servers, *box.nodes) if name not in (server, node)]
        await box.do(box.cluster.split, [server, node], others)
        await anyio.sleep(chance.uniform(1.0, 10.0))
        await box.do(box.cluster.heal, reset=chance.random() < 0.5)


async def play(box: Box, kinds: Sequence[str], rounds: int, seed: int) -> list[Operation]:
    """So many faults, of kinds in turn; the history."""
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    work = network_register.Registers(box=box, chance=chance)
    async with work.used():
        for number in range(rounds):
            kind = kinds[number % len(kinds)]
            await disturb(box, kind, chance)
            done[kind] += 1
            asked = len(work.recorder.operations)
            print(f"{dict(done)}: {asked} operations", flush=True)
        # Something is to be answered after the last one, too.
        await network_box.until_attached(box, dict.fromkeys(box.servers, True), SETTLE_S)
        await anyio.sleep(1.0)
    settled_s = await network_box.settle(box, SETTLE_S)
    await work.last_reads()
    if settled_s >= SETTLE_S:
        raise TimeoutError(f"not in order {SETTLE_S:g} s after the last fault")
    return work.operations()


def judge(operations: Sequence[Operation], *, plain_reads: bool = False) -> list[Verdict]:
    """What the checker says of each key. `plain_reads`: it is told that they were strict."""
    return network_register.judge(
        network_register.as_strict(operations) if plain_reads else operations
    )


async def run(folder: pathlib.Path, options: argparse.Namespace) -> int:
    """The exit code."""
    plain_reads: bool = options.plain_reads
    async with network_box.box(folder) as box:
        operations = await play(box, options.kinds, options.rounds, options.seed)
    verdicts = judge(operations, plain_reads=plain_reads)
    print(network_register.counts(operations, verdicts))
    if plain_reads:
        return 0 if any(verdict.answer == "wrong" for verdict in verdicts) else 1
    for verdict in verdicts:
        if not verdict.is_fine:
            print(verdict)
    return 0 if all(verdict.is_fine for verdict in verdicts) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="so many faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--plain-reads", action="store_true", help="the negative control")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options)


if __name__ == "__main__":
    sys.exit(main())
