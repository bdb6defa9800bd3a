"""NATS nodes that freeze and thaw: `python -m tests.faults.freeze_network --rounds 20`.

Eight clients work on the same few keys through three servers: strict reads, sets and
compare-and-sets, and some plain sets. In each round the NATS node that some server is connected to
is frozen (SIGSTOP: its connections stay open, and it does nothing), and thawed after a while, when
what hung in it comes out. Of that server a strict write that was begun after the freeze has to go
through another node within 5 s, or within 15 s if the frozen one led the stream. No acknowledged
write may be undone by one that hung: all that was answered is checked for linearizability, and that
the log has no earlier write on top of a later one.

Exit code 0 if everything was as it has to be, else 1.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from moat_kv import Path, errors, open_client
from tests.faults import network_box, network_register, undone
from tests.faults.history import Operation
from tests.faults.linearizability import Verdict
from tests.faults.network_box import Box

#: Strict writes go on within this time, in seconds; the second is for a node that led.
GO_ON_S, GO_ON_LED_S = 5.0, 15.0
SETTLE_S = 30.0


@dataclass(kw_only=True)
class Counts:
    """What was seen in all rounds."""

    led_s: list[float] = field(default_factory=list)
    """How long strict writes stood still when the frozen node led the stream, in seconds."""
    other_s: list[float] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Where that took too long, or all was not in order soon enough."""

    def __str__(self) -> str:
        led, other = max(self.led_s, default=0.0), max(self.other_s, default=0.0)
        return (
            f"{len(self.led_s) + len(self.other_s)} freezes: strict writes went on after"
            f" {other:.1f} s at most, {led:.1f} s when the node led ({len(self.led_s)} times);"
            f" {len(self.undone)} undone, {len(self.late)} times too late"
        )


async def freeze(box: Box, wants_leader: bool, counts: Counts, chance: random.Random) -> None:
    """One node, for as long as strict writes need to go on, and some seconds more."""
    await network_box.until_attached(box, dict.fromkeys(box.servers, True), SETTLE_S)
    await network_box.until_whole(box, SETTLE_S)
    leader = await box.do(box.cluster.leader)
    node_of = {server: await _node_of(box, server) for server in box.servers}
    nodes = sorted(set(node_of.values()), key=lambda node: ((node == leader) != wants_leader, node))
    node = nodes[0]
    server = next(each for each in box.servers if node_of[each] == node)
    led = node == leader
    limit_s = GO_ON_LED_S if led else GO_ON_S
    await box.do(box.cluster.freeze, node)
    try:
        took_s = await _strict_write(box, server, limit_s + 10.0)
        await anyio.sleep(chance.uniform(0.0, 4.0))
    finally:
        with anyio.CancelScope(shield=True):
            await box.do(box.cluster.thaw, node)
    (counts.led_s if led else counts.other_s).append(took_s)
    if took_s > limit_s:
        counts.late.append(f"{server}, {node} frozen, led: {led}: strict after {took_s:.1f} s")
    await anyio.sleep(chance.uniform(0.5, 2.0))


async def _node_of(box: Box, server: str) -> str:
    with anyio.fail_after(SETTLE_S):
        while True:
            place = (await box.facts(server)).get("server")
            node = box.cluster.node_at(place) if place else None
            if node is not None:
                return node
            await anyio.sleep(0.1)


async def _strict_write(box: Box, server: str, limit_s: float) -> float:
    """How long it takes until one that is begun from now on is stored, in seconds."""
    began = time.monotonic()
    async with anyio.create_task_group() as tasks:

        async def attempt(serial: int) -> None:
            try:
                async with open_client(box.url(server)) as client:
                    await client.set(Path("probe", serial), serial, strict=True)
            except errors.MoatKvError:
                return
            tasks.cancel_scope.cancel()

        for serial in range(int(limit_s / 0.5)):
            tasks.start_soon(attempt, serial)
            await anyio.sleep(0.5)
        tasks.cancel_scope.cancel()
    return time.monotonic() - began


async def play(box: Box, rounds: int, seed: int) -> tuple[Counts, list[Operation], list[Verdict]]:
    """So many freezes, every other one of the leader if a server is connected to it."""
    counts, chance = Counts(), random.Random(seed)
    work = network_register.Registers(box=box, chance=chance, plain_writes=True)
    async with work.used():
        await anyio.sleep(1.0)
        for number in range(rounds):
            await freeze(box, number % 2 == 1, counts, chance)
            await work.collect()
            asked = len(work.recorder.operations)
            print(f"{counts}; {asked} operations", flush=True)
    settled_s = await network_box.settle(box, SETTLE_S)
    if settled_s >= SETTLE_S:
        counts.late.append(f"not in order {SETTLE_S:g} s after the last fault")
    await work.last_reads()
    await work.collect()
    operations = work.operations()
    counts.undone += map(str, undone.find(operations, work.logs))
    verdicts = await anyio.to_thread.run_sync(network_register.judge, operations)
    return counts, operations, verdicts


def problems(counts: Counts, verdicts: Sequence[Verdict]) -> list[str]:
    """What is wrong, some lines each."""
    return [
        *counts.undone,
        *counts.late,
        *(str(verdict) for verdict in verdicts if not verdict.is_fine),
    ]


async def run(folder: pathlib.Path, rounds: int, seed: int) -> int:
    """The exit code."""
    async with network_box.box(folder) as box:
        counts, operations, verdicts = await play(box, rounds, seed)
    print(counts)
    print(network_register.counts(operations, verdicts))
    found = problems(counts, verdicts)
    for text in found:
        print(text)
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="so many freezes")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options.rounds, options.seed)


if __name__ == "__main__":
    sys.exit(main())
