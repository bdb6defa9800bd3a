"""Splits of a network, and heals: `python -m tests.faults.split_network --rounds 30`.

Three places with a NATS node and a server each, and clients that write without pause at all of
them. In turn: one place is cut from the two others (`two`), all from each other (`three`), what one
sends is lost while it hears the others (`one-way`), or one is cut and healed again and again
(`flapping`). Meanwhile each side writes and deletes entries of that round once, in a known order
where the sides are known. After each heal:

- all trees are equal, and no write waits, within 30 s;
- of an entry that several sides wrote, one value is there, and the others are among the conflicts;
  of sides that knew where they stood, the newest won;
- what was deleted, and not written afterwards, is not there;
- a strict write of a server without a majority was refused, within 10 s.

In the end every write that was answered is there, or replaced, or among the conflicts. Exit code 0
if everything was as it has to be, else 1.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from moat_kv import Client, P, open_client
from tests.faults import history, network_box, network_writers
from tests.faults.network_box import Box
from tests.faults.recording import LineGone, Recorded

KINDS = ("two", "three", "one-way", "flapping")
#: All trees are equal so soon after a heal, in seconds.
HEAL_S = 30.0
#: A strict write of a minority is refused within this time, in seconds.
REFUSE_S = 10.0
#: Every server has noticed on which side it is by then, in seconds.
NOTICE_S = 20.0
#: So far apart are writes whose order matters, in seconds.
APART_S = 0.3
ENTRIES = 3
PLACES = (*network_writers.PLACES, "split", "gone", "strict")


@dataclass(kw_only=True)
class Counts:
    """What was seen in all rounds."""

    splits: Counter[str] = field(default_factory=Counter)
    contested: int = 0
    by_time: int = 0
    """Contested entries of which it was known who had to win."""
    deleted: int = 0
    refused: int = 0
    slowest_refusal_s: float = 0.0
    slowest_notice_s: float = 0.0
    slowest_heal_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{self.splits[kind]} {kind}" for kind in KINDS)
        return (
            f"{self.splits.total()} splits ({kinds}): {self.contested} contested entries,"
            f" {self.by_time} of them with a known winner; {self.deleted} deleted ones;"
            f" {self.refused} strict writes of minorities refused, the slowest after"
            f" {self.slowest_refusal_s:.1f} s; split noticed after {self.slowest_notice_s:.1f} s"
            f" at most, equal {self.slowest_heal_s:.1f} s after a heal at most;"
            f" {len(self.wrong)} wrong"
        )


class Round:
    """One split, from the first entry to the look afterwards."""

    def __init__(
        self, box: Box, kind: str, number: int, counts: Counts, chance: random.Random
    ) -> None:
        self._box, self._kind, self._counts, self._chance = box, kind, counts, chance
        self._label = f"r{number}"
        index = chance.randrange(3)
        #: The place that is cut, and the servers that have no majority then.
        self._server, self._node = box.servers[index], box.nodes[index]
        self._alone = list(box.servers) if kind == "three" else [self._server]
        self._is_steady = kind != "flapping"
        self._written: dict[str, list[history.Operation]] = {}

    async def play(self) -> None:
        """Raises what a broken box raises; what is wrong is in the counts."""
        self._counts.splits[self._kind] += 1
        async with network_box.clients_of(self._box) as clients:
            lines = dict(zip(self._box.servers, map(self._line, clients), strict=True))
            for key in self._keys("gone"):
                await lines[self._server].write(key, f"old.{key}")
            await network_box.settle(self._box, HEAL_S)
            await network_box.until_whole(self._box, HEAL_S)
            await self._break()
            try:
                async with anyio.create_task_group() as tasks:
                    if self._is_steady:
                        for server in self._alone:
                            tasks.start_soon(self._be_refused, server)
                        await self._notice()
                    else:
                        tasks.start_soon(self._flap)
                    await self._write_all(lines)
            finally:
                with anyio.CancelScope(shield=True):
                    await self._heal()
        took_s = await network_box.settle(self._box, HEAL_S)
        self._counts.slowest_heal_s = max(self._counts.slowest_heal_s, took_s)
        if took_s >= HEAL_S:
            self._wrong(f"not in order {took_s:.0f} s after the heal: {await self._states()}")
        async with open_client(self._box.url(self._server)) as client:
            await self._check(client)

    def _line(self, client: Client) -> Recorded:
        name = f"{self._label}@{client.server.node}"
        return Recorded(client, self._box.recorder, name, strict=False)

    def _keys(self, kind: str) -> list[str]:
        return [f"{kind}.{self._label}.k{index}" for index in range(ENTRIES)]

    def _wrong(self, text: str) -> None:
        self._counts.wrong.append(f"{self._label} ({self._kind}, {self._server}): {text}")

    async def _states(self) -> list[str]:
        facts = [await self._box.facts(server) for server in self._box.servers]
        return [f"{one.get('attached')}, {one.get('outbox')} waiting" for one in facts]

    # The split ----------------------------------------------------------------------------------

    def _sides(self) -> list[list[str]]:
        places = list(zip(self._box.servers, self._box.nodes, strict=True))
        if self._kind == "three":
            return [list(place) for place in places]
        others = [name for place in places if place[0] != self._server for name in place]
        return [[self._server, self._node], others]

    async def _break(self) -> None:
        cluster = self._box.cluster
        if self._kind != "one-way":
            await self._box.do(cluster.split, *self._sides())
            return
        others = [name for name in self._box.nodes if name != self._node]
        for name in (self._server, self._node):
            await self._box.do(cluster.cut, name, *others, one_way=True)

    async def _flap(self) -> None:
        """Healed and cut again; it ends with a cut."""
        for _ in range(4):
            await anyio.sleep(self._chance.uniform(0.3, 2.0))
            await self._box.do(self._box.cluster.heal, reset=self._chance.random() < 0.3)
            await anyio.sleep(self._chance.uniform(0.1, 1.0))
            await self._break()

    async def _heal(self) -> None:
        """All at once, or one place after the other, in any order."""
        order = list(self._box.servers)
        self._chance.shuffle(order)
        if self._kind == "three" and self._chance.random() < 0.5:
            index = self._box.servers.index(order[0])
            await self._box.do(self._box.cluster.heal, order[0], self._box.nodes[index])
            await anyio.sleep(self._chance.uniform(0.5, 3.0))
        await self._box.do(self._box.cluster.heal, reset=self._chance.random() < 0.5)

    async def _notice(self) -> None:
        """Wait until each server knows on which side it is."""
        wanted = {server: server not in self._alone for server in self._box.servers}
        try:
            took_s = await network_box.until_attached(self._box, wanted, NOTICE_S)
        except TimeoutError:
            self._wrong(f"not noticed within {NOTICE_S:g} s: {await self._states()}")
            self._is_steady = False
        else:
            self._counts.slowest_notice_s = max(self._counts.slowest_notice_s, took_s)

    async def _be_refused(self, server: str) -> None:
        """Strict writes from the split on, until one is refused because of it, and one more."""
        key = f"strict.{self._label}.{server}"
        async with open_client(self._box.url(server), request_timeout_s=30.0) as client:
            line = Recorded(client, self._box.recorder, f"strict.{self._label}@{server}")
            for serial in range(2):
                began = time.monotonic()
                try:
                    one = await line.write(f"{key}.{serial}", f"{key}.{serial}")
                    outcome, error = one.outcome, one.error
                except LineGone:
                    outcome, error = "unknown", "Unknown"
                took_s = time.monotonic() - began
                self._counts.slowest_refusal_s = max(self._counts.slowest_refusal_s, took_s)
                self._counts.refused += outcome != "ok"
                if outcome in ("ok", "pending") or took_s > REFUSE_S:
                    self._wrong(f"a strict write: {outcome} {error} after {took_s:.1f} s")

    # Writing ------------------------------------------------------------------------------------

    async def _write_all(self, lines: dict[str, Recorded]) -> None:
        """Contested entries by one server of each side, then the deletions."""
        sides = [self._server, *(name for name in lines if name != self._server)]
        if self._kind != "three":
            sides = sides[:2]
        for key in self._keys("split"):
            self._written[key] = []
            for server in self._chance.sample(sides, len(sides)):
                self._written[key].append(await lines[server].write(key, f"{key}.{server}"))
                await anyio.sleep(APART_S)
        # What was written before, by the other side, must not outlive the deletion either.
        kept, overwritten, written_after = self._keys("gone")
        deleter, other = self._chance.sample(sides, 2)
        await lines[other].write(overwritten, f"new.{overwritten}")
        await anyio.sleep(APART_S)
        for key in (kept, overwritten, written_after):
            await lines[deleter].delete(key)
        await anyio.sleep(APART_S)
        await lines[other].write(written_after, f"new.{written_after}")

    # Afterwards ---------------------------------------------------------------------------------

    async def _check(self, client: Client) -> None:
        lost = set(await network_box.conflicting_values(client))
        for key, written in self._written.items():
            self._counts.contested += 1
            result = await client.get(P(key))
            there = result.value if "value" in result else None
            values = [one.value for one in written if one.outcome in ("ok", "pending")]
            if there not in values:
                self._wrong(f"{key} is {there}, of {values}")
            missing = [value for value in values if value != there and value not in lost]
            if not self._is_steady or self._kind == "one-way":
                # Whoever was in touch, or still heard the others, may have written over what was in
                # the log, knowing it.
                stored = await client.history(P(key), limit=network_box.HISTORY)
                missing = [v for v in missing if v not in [one.get("value") for one in stored]]
            for value in missing:
                self._wrong(f"{key}: {value} has lost against {there}, and is no conflict")
            if self._is_steady:
                self._counts.by_time += 1
                if there != values[-1]:
                    orders = [f"{one.client} {one.outcome}" for one in written]
                    self._wrong(f"{key} is {there}, written in this order: {orders}")
        kept, overwritten, written_after = self._keys("gone")
        self._counts.deleted += 2
        for key in (kept, overwritten) if self._is_steady else (kept,):
            if "value" in (result := await client.get(P(key))):
                self._wrong(f"{key} was deleted, and is {result.value}")
        if self._is_steady and "value" not in await client.get(P(written_after)):
            self._wrong(f"{written_after} was written after its deletion, and is not there")


async def play(
    folder: pathlib.Path, kinds: Sequence[str], rounds: int, seed: int, pause_s: float
) -> tuple[Counts, network_box.Verdict]:
    """So many splits, the kinds in turn."""
    counts, chance = Counts(), random.Random(seed)
    async with network_box.box(folder) as box:
        began = time.monotonic()
        for number, kind in zip(range(1, rounds + 1), itertools.cycle(kinds), strict=False):
            one = Round(box, kind, number, counts, chance)
            async with network_writers.writing(box, seed + 1000 * number, pause_s=pause_s):
                await one.play()
            text = network_writers.counts(box, time.monotonic() - began)
            print(f"{number} splits, {kind}; {text}; {len(counts.wrong)} wrong", flush=True)
        settled_s = await network_box.settle(box, HEAL_S)
        if settled_s >= HEAL_S:
            counts.wrong.append("not in order in the end")
        verdict = await network_box.look(box, PLACES)
    return counts, verdict


async def run(folder: pathlib.Path, kinds: Sequence[str], rounds: int, seed: int) -> int:
    """The exit code."""
    counts, verdict = await play(folder, kinds, rounds, seed, network_writers.PAUSE_S)
    print(counts)
    print(verdict)
    for line in [*counts.wrong[:20], *verdict.details()]:
        print(line)
    return 0 if verdict.is_fine and not counts.wrong else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options.kinds, options.rounds, options.seed)


if __name__ == "__main__":
    sys.exit(main())
