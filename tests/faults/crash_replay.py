"""Chained writes of a server that was cut off, which crashes while it brings them in:
`python -m tests.faults.crash_replay --rounds 20`.

In each round a server is cut off from all NATS nodes. Through it each of many paths is written
three times, the second write upon the first, the third upon the second. Others write some of the
paths as well, before or after that. When the server is back in touch and has brought in some of
them, as another server sees it, it is killed with `kill -9` and started again, in many rounds
twice. Afterwards all has to be exact:

- each path has the value of whoever wrote it last, on all servers;
- each path's history has the last of the three once, and the first two not at all;
- each write that lost is among the conflicts once, and nothing else is.

Exit code 0 if so, and if all crashes came in the middle; else 1.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import anyio

from moat_kv import Client, P, Path, conflicts, open_client
from moat_kv.client import comparing
from tests.faults import network_box
from tests.faults.network_box import Box

#: What happens to a path: nobody else writes it; others do before, or after; it is deleted last.
KINDS = ("own", "before", "after", "deleted")
#: So many paths of each kind; every other one had a value when the server was cut off.
PATHS = 60
#: The links are made that slow while it is brought in, in seconds each way.
DELAY_S = 0.15
#: So far apart are writes of different servers, in seconds: a server that starts behind slow links
#: knows the time only by what takes several of them.
APART_S = 1.2
#: The server notices, or is back, by then; all is in order by then.
NOTICE_S, SETTLE_S = 30.0, 60.0
#: A round whose crash came too late is played again so often.
TRIES = 3


@dataclass(kw_only=True)
class Counts:
    """What was seen in all rounds."""

    rounds: int = 0
    crashes: int = 0
    """Those in the middle of bringing in."""
    too_late: int = 0
    """Everything had been brought in by then; not counted as a round."""
    chains: int = 0
    conflicts: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.rounds} times brought in with {self.crashes} crashes in the middle:"
            f" {self.chains} chains of three writes, {self.conflicts} conflicts,"
            f" {len(self.wrong)} wrong"
        )


class Round:
    """From the first write to the look afterwards."""

    def __init__(self, box: Box, label: str, counts: Counts, chance: random.Random) -> None:
        self._box, self._counts, self._chance = box, counts, chance
        self._place = P("chain") / label
        self._server, self._other = chance.sample(box.servers, 2)
        self._paths = [self._place / kind / n for kind in KINDS for n in range(PATHS)]
        #: By these another server sees how far it has come.
        self._seen_by = [path for path in self._paths if _kind(path) in ("own", "before")]

    async def play(self) -> bool:
        """Whether it was crashed in the middle. What is wrong is noted."""
        box = self._box
        async with open_client(box.url(self._other)) as other:
            async with open_client(box.url(self._server)) as mine:
                await _each(self._paths[::2], lambda path: mine.set(path, f"{path}.0"))
                await network_box.settle(box, SETTLE_S)
                others = [name for name in (*box.servers, *box.nodes) if name != self._server]
                await box.do(box.cluster.split, [self._server], others)
                await network_box.until_attached(box, {self._server: False}, NOTICE_S)
                await self._write(mine, other)
            crashes = await self._bring_in(other)
            settled_s = await network_box.settle(box, SETTLE_S)
            self._counts.crashes += crashes
            if settled_s >= SETTLE_S:
                self._wrong(f"not in order after {SETTLE_S:g} s")
            await self._check(other)
        return crashes > 0

    def _wrong(self, text: str) -> None:
        line = f"{self._place} ({self._server}): {text}"
        print(line, flush=True)
        self._counts.wrong.append(line)

    async def _write(self, mine: Client, other: Client) -> None:
        before = [path for path in self._paths if _kind(path) == "before"]
        after = [path for path in self._paths if _kind(path) == "after"]
        await _each(before, lambda path: other.set(path, f"{path}.other"))
        await anyio.sleep(APART_S)
        for nth in (1, 2, 3):

            async def write(path: Path, nth: int = nth) -> None:
                if nth == 3 and _kind(path) == "deleted":
                    result = await mine.delete(path)
                else:
                    result = await mine.set(path, f"{path}.{nth}")
                if not result.pending:
                    self._wrong(f"{path}: {nth} was answered as stored, though cut off")

            await _each(self._paths, write)
        await anyio.sleep(APART_S)
        await _each(after, lambda path: other.set(path, f"{path}.other"))

    # Bringing it in -----------------------------------------------------------------------------

    async def _bring_in(self, other: Client) -> int:
        """Heal, and crash it once or twice; how many crashes came in the middle."""
        box, total = self._box, len(self._seen_by)
        times = self._chance.choice((1, 2))
        crashes = 0
        await box.do(box.cluster.slow, DELAY_S)
        await box.do(box.cluster.heal)
        for count in sorted(self._chance.sample(range(1, total // 2), times)):
            with anyio.move_on_after(SETTLE_S):
                while await self._brought_in(other) < count:
                    await anyio.sleep(0.01)
            await box.do(box.cluster.kill, self._server)
            # What had been sent may still come.
            await other.get(self._place, strict=True)
            crashes += 0 < await self._brought_in(other) < total
            await box.do(box.cluster.start, self._server)
        await box.do(box.cluster.slow)
        return crashes

    async def _brought_in(self, other: Client) -> int:
        shown = {self._place + row.path: row.value async for row in other.get_tree(self._place)}
        return sum(shown.get(path) == f"{path}.3" for path in self._seen_by)

    # Afterwards ---------------------------------------------------------------------------------

    async def _check(self, other: Client) -> None:
        async with network_box.clients_of(self._box) as clients:
            differing = await comparing.differences(clients, Path())
        for one in differing[:5]:
            self._wrong(f"servers differ: {one.path}")
        rows = [row.value async for row in other.get_tree(conflicts.PLACE)]
        lost = Counter(
            (row.path, row.get("value"))
            for row in rows
            if row.path[: len(self._place)] == self._place
        )
        expected = Counter(
            (path, f"{path}.other" if _kind(path) == "before" else f"{path}.3")
            for path in self._paths
            if _kind(path) in ("before", "after")
        )
        for found in (lost - expected, expected - lost):
            what = "is no conflict" if found == expected - lost else "is a conflict"
            for (path, value), times in found.items():
                self._wrong(f"{path}: {value} {what}, {times} times")
        self._counts.conflicts += lost.total()
        self._counts.chains += len(self._paths)
        for path in self._paths:
            kept = await other.history(path, limit=network_box.HISTORY)
            found_values = [record.get("value") for record in kept]
            if found_values != (wanted := self._history(path)):
                self._wrong(f"{path} has been {found_values}, ought to be {wanted}")

    def _history(self, path: Path) -> list[str | None]:
        """What the path has had, newest first; None: it was deleted."""
        base = [f"{path}.0"] if path[-1] % 2 == 0 else []  # type: ignore[operator]
        match _kind(path):
            case "own":
                return [f"{path}.3", *base]
            case "before":
                return [f"{path}.3", f"{path}.other", *base]
            case "after":
                return [f"{path}.other", *base]
            case _:
                return [None, *base]


def _kind(path: Path) -> object:
    """Of a path `chain.ROUND.KIND.NUMBER`."""
    return path[2]


async def _each(paths: Sequence[Path], call: Callable[[Path], Awaitable[object]]) -> None:
    """All at the same time."""
    async with anyio.create_task_group() as tasks:
        for path in paths:
            tasks.start_soon(_one, call, path)


async def _one(call: Callable[[Path], Awaitable[object]], path: Path) -> None:
    await call(path)


async def play(box: Box, rounds: int, seed: int) -> Counts:
    """So many rounds."""
    counts, chance = Counts(), random.Random(seed)
    while counts.rounds < rounds and counts.too_late < TRIES * rounds:
        label = f"r{counts.rounds + counts.too_late}"
        if await Round(box, label, counts, chance).play():
            counts.rounds += 1
        else:
            counts.too_late += 1
        print(f"{counts}; {counts.too_late} crashes came too late", flush=True)
    if counts.rounds < rounds:
        counts.wrong.append("crashes came too late again and again")
    return counts


async def run(folder: pathlib.Path, rounds: int, seed: int) -> int:
    """The exit code."""
    async with network_box.box(folder) as box:
        counts = await play(box, rounds, seed)
    for line in counts.wrong[:20]:
        print(line)
    return 1 if counts.wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options.rounds, options.seed)


if __name__ == "__main__":
    sys.exit(main())
