"""Splits of a network, and heals: `python -m tests.faults.split_network --rounds 30`.

Three places with a NATS node and a server each, and clients that write without pause at all of
them. In turn: one place is cut from the two others (`two`), all from each other (`three`), what one
sends is lost while it hears the others (`one-way`), one is cut and healed again and again
(`flapping`), or two servers are cut off from all nodes, and come back one after the other (`pair`).
Meanwhile each side writes and deletes entries of that round once, in a known order where the sides
are known. After each heal:

- all trees are equal, and no write waits, within 30 s;
- of an entry that several sides wrote, one value is there, and the others are among the conflicts;
  of sides that knew where they stood, the newest won;
- what was deleted, and not written afterwards, is not there;
- a strict write of a server without a majority was refused, within 10 s, or answered `Unknown` by
  then, if it had been sent before the server noticed;
- sessions, of which there is a live one at each server, have ended only where a server was cut off
  for as long as its lease holds.

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
from collections.abc import Sequence

import anyio

from moat_kv import Client, P, open_client
from tests.faults import history, live_sessions, network_box, network_writers
from tests.faults.live_sessions import LiveSessions
from tests.faults.network_box import Box
from tests.faults.recording import LineGone, Recorded
from tests.faults.split_counts import KINDS, Counts

#: All trees are equal so soon after a heal, in seconds.
HEAL_S = 30.0
#: Clients write on for so long after it, in seconds.
WRITE_ON_S = 1.0
#: A strict write of a minority is refused within this time, in seconds.
REFUSE_S = 10.0
#: Every server has noticed on which side it is by then, in seconds.
NOTICE_S = 20.0
#: Entries of sessions that have ended are gone so soon after the last heal, in seconds.
LEFT_S = 60.0
#: So far apart are writes whose order matters, in seconds.
APART_S = 0.3
ENTRIES = 3
PLACES = (*network_writers.PLACES, "split", "gone", "strict")


class Round:
    """One split, from the first entry to the look afterwards."""

    def __init__(
        self, box: Box, live: LiveSessions, kind: str, number: int, counts: Counts, seed: int
    ) -> None:
        self._box, self._live, self._kind, self._counts = box, live, kind, counts
        self._chance = chance = random.Random(seed)
        self._label = f"r{number}"
        index = chance.randrange(3)
        #: The place that is cut, and the servers that have no majority then.
        self._server, self._node = box.servers[index], box.nodes[index]
        count = {"three": 3, "pair": 2}.get(kind, 1)
        self._alone = [box.servers[(index + n) % 3] for n in range(count)]
        self._is_steady = kind != "flapping"
        self._written: dict[str, list[history.Operation]] = {}
        self._split_at = self._healed_at = 0.0

    async def disturb(self) -> None:
        """Split it and heal it. Raises what a broken box raises; what is wrong is in the counts."""
        self._counts.splits[self._kind] += 1
        async with network_box.clients_of(self._box) as clients:
            lines = dict(zip(self._box.servers, map(self._line, clients), strict=True))
            old = {key: f"old.{key}" for key in self._keys("gone")}
            for key, value in old.items():
                await lines[self._server].write(key, value)
            await network_box.until_seen(self._box, old, HEAL_S)
            await network_box.until_whole(self._box, HEAL_S)
            self._split_at = time.monotonic()
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
                await self._look_for_sessions()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._heal()
        self._healed_at = time.monotonic()

    async def check(self) -> None:
        """Look at what has become of it. Nobody writes meanwhile."""
        settled_s = await network_box.settle(self._box, HEAL_S)
        took_s = time.monotonic() - self._healed_at
        self._counts.slowest_heal_s = max(self._counts.slowest_heal_s, took_s)
        if settled_s >= HEAL_S or took_s >= HEAL_S + WRITE_ON_S:
            self._wrong(f"not in order {took_s:.0f} s after the heal: {await self._states()}")
        async with open_client(self._box.url(self._server)) as client:
            await self._check(client)
        await self._check_sessions(time.monotonic() - self._split_at)

    def _line(self, client: Client) -> Recorded:
        name = f"{self._label}@{client.server.node}"
        return Recorded(client, self._box.recorder, name, strict=False)

    def _keys(self, kind: str) -> list[str]:
        return [f"{kind}.{self._label}.k{index}" for index in range(ENTRIES)]

    def _wrong(self, text: str) -> None:
        line = f"{self._label} ({self._kind}, {self._server}): {text}"
        print(line, flush=True)
        self._counts.wrong.append(line)

    def _late(self, text: str) -> None:
        line = f"{self._label} ({self._kind}, {self._server}): {text}"
        print(line, flush=True)
        self._counts.late.append(line)

    async def _states(self) -> list[str]:
        facts = [await self._box.facts(server) for server in self._box.servers]
        return [f"{one.get('attached')}, {one.get('outbox')} waiting" for one in facts]

    # The split ----------------------------------------------------------------------------------

    def _sides(self) -> list[list[str]]:
        places = list(zip(self._box.servers, self._box.nodes, strict=True))
        if self._kind == "three":
            return [list(place) for place in places]
        if self._kind == "pair":
            others = [name for name in self._box.servers if name not in self._alone]
            return [*([name] for name in self._alone), [*others, *self._box.nodes]]
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
        order = list(self._box.servers if self._kind != "pair" else self._alone)
        self._chance.shuffle(order)
        if self._kind == "pair":
            await self._box.do(self._box.cluster.heal, order[0])
            await self._emptied(order[0])
            for written in self._written.values():
                is_winner = written[-1].client.endswith(f"@{order[0]}")
                self._counts.winner_first += is_winner
                self._counts.loser_first += not is_winner
        if self._kind == "three" and self._chance.random() < 0.5:
            index = self._box.servers.index(order[0])
            await self._box.do(self._box.cluster.heal, order[0], self._box.nodes[index])
            await anyio.sleep(self._chance.uniform(0.5, 3.0))
        await self._box.do(self._box.cluster.heal, reset=self._chance.random() < 0.5)

    async def _emptied(self, server: str) -> None:
        """Wait until it is in touch, and no write waits there."""
        with anyio.move_on_after(HEAL_S):
            while True:
                facts = await self._box.facts(server)
                if facts.get("attached") and not facts["outbox"]:
                    return
                await anyio.sleep(0.1)
        self._wrong(f"{server}, back first, is not in order: {await self._states()}")

    async def _notice(self) -> None:
        """Wait until each server knows on which side it is."""
        wanted = {server: server not in self._alone for server in self._box.servers}
        try:
            took_s = await network_box.until_attached(self._box, wanted, NOTICE_S)
        except TimeoutError:
            self._late(f"not noticed within {NOTICE_S:g} s: {await self._states()}")
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
                self._count(outcome, took_s)
                if outcome in ("ok", "pending"):
                    self._wrong(f"a strict write: {outcome} after {took_s:.1f} s")
                elif took_s > REFUSE_S:
                    self._late(f"a strict write: {outcome} {error} after {took_s:.1f} s")

    def _count(self, outcome: str, took_s: float) -> None:
        counts = self._counts
        if outcome == "unknown":
            counts.left_open += 1
            counts.slowest_left_open_s = max(counts.slowest_left_open_s, took_s)
        elif outcome == "failed":
            counts.refused += 1
            counts.slowest_refusal_s = max(counts.slowest_refusal_s, took_s)

    # Writing ------------------------------------------------------------------------------------

    async def _write_all(self, lines: dict[str, Recorded]) -> None:
        """Contested entries by one server of each side, then the deletions."""
        sides = [self._server, *(name for name in lines if name != self._server)]
        if self._kind == "pair":
            sides = list(self._alone)
        elif self._kind != "three":
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

    # Sessions -----------------------------------------------------------------------------------

    async def _look_for_sessions(self) -> None:
        """While it is split: nobody has ended what others have."""
        if time.monotonic() - self._split_at < live_sessions.KEPT_S:
            for server in self._box.servers:
                for other in await self._live.missing_at(server):
                    self._wrong(f"{server} does not show what a session at {other} has")

    async def _check_sessions(self, took_s: float) -> None:
        """Which have ended; `took_s` after the split all is in order again."""
        ended = await self._live.ended()
        self._counts.sessions_kept += len(self._box.servers) - len(ended)
        for server in ended:
            if server in self._alone and took_s >= live_sessions.HOLDS_S:
                self._counts.sessions_over += 1
            else:
                self._wrong(f"the session at {server} has ended, {took_s:.1f} s after the split")

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
                stored = await network_box.agreed(
                    lambda key=key: client.history(P(key), limit=network_box.HISTORY)  # type: ignore[misc]
                )
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
    box: Box, kinds: Sequence[str], rounds: int, seed: int, pause_s: float
) -> tuple[Counts, network_box.Verdict]:
    """So many splits, the kinds in turn."""
    counts, chance = Counts(), random.Random(seed)
    async with live_sessions.kept(box) as live:
        began = time.monotonic()
        for number, kind in zip(range(1, rounds + 1), itertools.cycle(kinds), strict=False):
            one = Round(box, live, kind, number, counts, chance.getrandbits(32))
            async with network_writers.writing(box, seed + 1000 * number, pause_s=pause_s):
                await one.disturb()
                await anyio.sleep(WRITE_ON_S)
            await one.check()
            text = network_writers.counts(box, time.monotonic() - began)
            faults = f"{len(counts.wrong)} wrong, {len(counts.late)} late"
            print(f"{number} splits, {kind}; {text}; {faults}", flush=True)
        settled_s = await network_box.settle(box, HEAL_S)
        if settled_s >= HEAL_S:
            counts.wrong.append("not in order in the end")
        counts.wrong += live.ended_elsewhere()
        left = await live.leftovers(LEFT_S)
        counts.wrong += [f"{path} is there, though its session has ended" for path in left]
        verdict = await network_box.look(box, PLACES)
    return counts, verdict


async def run(folder: pathlib.Path, kinds: Sequence[str], rounds: int, seed: int) -> int:
    """The exit code."""
    async with network_box.box(folder) as box:
        counts, verdict = await play(box, kinds, rounds, seed, network_writers.PAUSE_S)
    print(counts)
    print(verdict)
    for line in [*counts.wrong[:20], *counts.late[:20], *verdict.details()]:
        print(line)
    return 0 if verdict.is_fine and not counts.wrong and not counts.late else 1


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
