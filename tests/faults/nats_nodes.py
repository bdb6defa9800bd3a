"""NATS nodes die and freeze under writing: `python -m tests.faults.nats_nodes --rounds 30`.

Three nodes, three engines on them as three servers would have, in this process. Each round one
node, often the one that leads, is killed with `kill -9` and started again, or frozen and thawed.
Meanwhile each engine writes numbers that rise to paths of its own (singly, in groups, guarded),
plain values to paths that all share, and counts up by compare-and-set on shared paths. Afterwards
the whole log must hold every write that was answered, at its revision, once; numbers must rise
along it, counts by one; and all trees, a newcomer's too, must be equal. Exit code 0 if so, else 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack

import anyio
import anyio.to_thread

from moat_kv import config, errors
from moat_kv.engine import base, nats
from moat_kv.entry import Guard, Record, Write
from moat_kv.path import Path
from moat_kv.testing import engine_probe
from moat_kv.testing import nats as nats_servers

NETWORK = "faults"
#: Each engine has so many of every kind of writer.
LANES = 3
SHARED = 3
#: So much of the log is kept that nothing rolls off; NATS takes more, the engine's setting not.
HISTORY = 1_000
ROTATED = 200


class Server:
    """One engine, its tree, and what became of its writes."""

    def __init__(self, url: str, number: int) -> None:
        access = config.NatsConfig(history=HISTORY)
        self.number = number
        self.engine = nats.NatsEngine(url, access=access, patience_s=30.0)
        self.replica = engine_probe.DictReplica()
        self.stopped = False
        self.answered: list[Record] = []
        self.refused: Counter[str] = Counter()
        self._tick = 0

    def make(self, path: Path, value: bytes, expect: int | None = None, *guards: Guard) -> Write:
        self._tick += 1
        origin = f"n{self.number}:1"
        return Write(path, value, origin=origin, tick=self._tick, expect=expect, guards=guards)

    async def group(self, *writes: Write) -> list[Record] | None:
        """The records, or None for what was refused."""
        answered = anyio.Event()
        outcomes: list[base.Outcome] = []

        def done(outcome: base.Outcome) -> None:
            outcomes.append(outcome)
            answered.set()

        self.engine.submit(writes, done)
        await answered.wait()
        outcome = outcomes[0]
        if isinstance(outcome, errors.MoatKvError):
            self.refused[type(outcome).__name__] += 1
            return None
        self.answered += outcome
        return list(outcome)

    async def rise(self, lane: int, size: int) -> None:
        """Numbers that rise; on other paths from time to time, so that nothing rolls off."""
        number = 0
        while not self.stopped:
            number += 1
            place = Path("own", self.number, size, lane, number // ROTATED)
            await self.group(*[self.make(place / n, b"%d" % number) for n in range(size)])

    async def guarded(self, lane: int) -> None:
        number = 0
        while not self.stopped:
            claim = await self.group(self.make(Path("claim", self.number, lane, number), b"1"))
            for _ in range(50):
                number += 1
                if claim is None or self.stopped:
                    break
                guard = Guard(claim[0].path, claim[0].rev, "fence")
                place = Path("guarded", self.number, lane, number // ROTATED)
                await self.group(self.make(place, b"%d" % number, None, guard))

    async def share(self, lane: int) -> None:
        number = 0
        while not self.stopped:
            number += 1
            place = Path("shared", lane % SHARED, number // (ROTATED // 4))
            await self.group(self.make(place, b"n%d %d %d" % (self.number, lane, number)))

    async def count(self, lane: int) -> None:
        generation = 0
        while not self.stopped:
            place = Path("count", lane % SHARED, generation)
            head = self.replica.head(place)
            value = int(head.value or 0) if head is not None else 0
            if value >= ROTATED:
                generation += 1
                continue
            rev = head.rev if head is not None else 0
            await self.group(self.make(place, b"%d" % (value + 1), rev))


def findings(log: Sequence[Record], servers: Sequence[Server]) -> list[str]:
    """What is wrong with the log, a line each."""
    found = []
    ids = Counter(record.id for record in log)
    found += [f"{id_} is there {times} times" for id_, times in ids.items() if times > 1]
    by_rev = {record.rev: record for record in log}
    for server in servers:
        for record in server.answered:
            if by_rev.get(record.rev) != record:
                found.append(f"answered {record}, the log has {by_rev.get(record.rev)}")
    last: dict[Path, int] = {}
    for record in log:
        kind, before = record.path[0], last.get(record.path)
        if kind in ("own", "guarded", "count"):
            number = last[record.path] = int(record.value or 0)
            if before is not None and number <= before:
                found.append(f"{record.path}: {number} after {before}")
            if kind == "count" and number != (before or 0) + 1:
                found.append(f"{record.path}: {number} after {before or 0}")
    return found


async def disturb(
    nodes: Sequence[nats_servers.Node], chance: random.Random, rounds: int, servers: list[Server]
) -> None:
    for number in range(rounds):
        leads = chance.random() < 0.5
        run = anyio.to_thread.run_sync
        leader = await run(nats_servers.leader, nodes, f"moat-{NETWORK}")
        node = leader if leads else chance.choice(nodes)
        kind = chance.choice(["kill", "freeze"])
        answered = sum(len(each.answered) for each in servers)
        if kind == "kill":
            node.kill()
            await anyio.sleep(chance.uniform(0.1, 4.0))
            await run(lambda node=node: node.start(wait=False))  # type: ignore[misc]
        else:
            node.freeze()
            await anyio.sleep(chance.uniform(0.5, 9.0))
            node.thaw()
        began = time.monotonic()
        await run(nats_servers.wait_for_all, nodes)
        await anyio.sleep(1.0)
        answered = sum(len(each.answered) for each in servers) - answered
        what = f"{kind} {node.name}{', the leader' if node is leader else ''}"
        print(f"round {number}: {what}, {answered} answered", end="")
        print(f", whole again after {time.monotonic() - began:.1f} s", flush=True)


async def run(nodes: Sequence[nats_servers.Node], rounds: int, seed: int) -> list[str]:
    addresses = [node.address for node in nodes]
    url = f"nats://{','.join(addresses)}/{NETWORK}"
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        servers = [Server(url, number) for number in range(3)]
        for server in servers:
            await stack.enter_async_context(server.engine.running(server.replica))
        async with anyio.create_task_group() as tasks:
            for server in servers:
                for lane in range(LANES):
                    tasks.start_soon(server.rise, lane, 1)
                    tasks.start_soon(server.rise, lane, 3)
                    tasks.start_soon(server.guarded, lane)
                    tasks.start_soon(server.share, lane)
                    tasks.start_soon(server.count, lane)
            await disturb(nodes, random.Random(seed), rounds, servers)
            for server in servers:
                server.stopped = True
        newcomer = Server(url, 9)
        await stack.enter_async_context(newcomer.engine.running(newcomer.replica))
        trees = [server.replica.heads for server in servers]
        with anyio.move_on_after(30):
            while any(tree != newcomer.replica.heads for tree in trees):
                await anyio.sleep(0.1)
        found = findings(await engine_probe.all_records(newcomer.engine), servers)
        found += [
            f"the tree of server {number} is another"
            for number, tree in enumerate(trees)
            if tree != newcomer.replica.heads
        ]
    answered = sum(len(server.answered) for server in servers)
    refused = sum([server.refused for server in servers], Counter[str]())
    rate = answered / (time.monotonic() - began)
    print(f"{rounds} faults: {answered} records answered ({rate:.0f} a second), {dict(refused)}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with nats_servers.cluster(3) as nodes:
        found = anyio.run(run, nodes, options.rounds, options.seed)
    for line in found[:50]:
        print(line)
    print(f"{len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
