"""Jobs that write all the time, and what they leave: for the faults that happen to runners.

A job's script writes an entry of its own for each beat, under its claim if it has one, and adds a
line to a file of this machine, by the clock that all its processes share. `Beats` reads both: the
tree's revisions say in which order writes were accepted, the lines when a script was at work.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import anyio

from moat_kv import Client, P, Path
from moat_kv.code import CodeRoot
from moat_kv.config import Places
from moat_kv_runner import commands

GROUP = Path("default")
#: Between two beats, in seconds.
STEP_S = 0.05
_LOOK_S = 0.02

SCRIPT = """
import os, time
import anyio
from moat_kv import errors, open_client
job, n = str(_self.path[-1]), 0

def note(what, fence):
    with open(notes, "a") as file:
        words = (what, job, n, fence, _self.node, os.getpid(), run, time.monotonic())
        file.write(" ".join(map(str, words)) + "\\n")

run = time.monotonic_ns()
note("begin", _self.fence)
client = _client
if url:
    # What must be found: it goes on for a while, whatever becomes of its claim.
    client = await _self.open_context(open_client(url))
    await anyio.lowlevel.checkpoint()
while True:
    n += 1
    fence = _self.fence
    note("try", fence)
    try:
        here = _P("beat") / job / _self.node / run / n
        await client.set(here, {"node": _self.node, "fence": fence, "run": run})
        note("ok", fence)
    except errors.MoatKvError as exc:
        note(type(exc).__name__, fence)
        if not isinstance(exc, (errors.Detached, errors.Disconnected, errors.Unknown)):
            raise
    await anyio.sleep(step_s)
"""


@dataclass(frozen=True, kw_only=True)
class Note:
    """A line of the file."""

    what: str
    """`begin`, `try`, `ok`, or the error that a write met."""
    job: str
    n: int
    fence: int
    """0: the run has no claim."""
    node: str
    pid: int
    run: int
    at: float
    """Monotonic seconds."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """A beat in the tree."""

    rev: int
    fence: int
    node: str
    run: int


class Beats:
    """Jobs of one group for any node, and what they have left so far."""

    def __init__(self, client: Client, folder: pathlib.Path, *, url: str = "") -> None:
        self.client = client
        # Of a server that scripts write to with no fence; what the checks have to find.
        self._url = url
        self.file = folder / "beats.txt"

    async def add(self, *jobs: str, **attributes: Any) -> None:
        """Have these run."""
        code = await CodeRoot.as_handler(self.client)
        await code.add("beat", code=SCRIPT, is_async=True)
        data = {"notes": str(self.file), "step_s": STEP_S, "url": self._url}
        value = {"code": P("beat"), "data": data, "target": time.time(), "delay": 0.1}
        for job in jobs:
            place = commands.job_path(Places(), "any", GROUP, P(job))
            await self.client.set(place, {**value, **attributes})

    async def warm(self, nodes: Iterable[str]) -> None:
        """Have each runner start a child once, so that its fork server is there."""
        code = await CodeRoot.as_handler(self.client)
        await code.add("warm", code="pass", is_async=True)
        value = {"code": P("warm"), "target": 1.0, "isolate": "process"}
        await self.client.set(commands.job_path(Places(), "all", GROUP, P("warm")), value)
        for node in nodes:
            place = commands.state_path(Places(), "all", GROUP, P("warm"), node=node)
            while (await self.client.get(place)).get("value", {}).get("stopped") is None:
                await anyio.sleep(_LOOK_S)

    def notes(self, job: str) -> list[Note]:
        """In the order in which they were made."""
        text = self.file.read_text() if self.file.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()
        return [note for note in map(_parse, whole) if note.job == job]

    async def holder(self, job: str, client: Client | None = None) -> str | None:
        """Who has the claim, as a client's server shows it."""
        place = commands.claim_path(Places(), "any", GROUP, P(job))
        found = await (client or self.client).get(place)
        return str(found.value.node) if "value" in found else None

    async def first(
        self, job: str, wanted: Callable[[Note], bool], *, since: float, limit_s: float
    ) -> Note | None:
        """Wait for the first write since then that is so; None if there is none in time."""
        with anyio.move_on_after(limit_s):
            while True:
                for note in self.notes(job):
                    if note.what == "ok" and note.at >= since and wanted(note):
                        return note
                await anyio.sleep(_LOOK_S)
        return None

    def last(self, job: str) -> Note | None:
        """The newest write."""
        return max((n for n in self.notes(job) if n.what == "ok"), key=_when, default=None)

    async def writes(self, job: str) -> list[Write]:
        """What is in the tree, in the order in which it was accepted."""
        rows = [row async for row in self.client.get_tree(P("beat") / job, min_depth=3)]
        made = [
            Write(rev=row.rev, fence=row.value.fence, node=row.value.node, run=row.value.run)
            for row in rows
        ]
        return sorted(made, key=lambda each: each.rev)


def doubles(writes: Iterable[Write]) -> list[str]:
    """Writes that were accepted under a fence after one under a higher fence; a fence of two.

    Those without a fence do not count.
    """
    found: list[str] = []
    nodes: dict[int, str] = {}
    highest = 0
    for each in writes:
        if not each.fence:
            continue
        if each.fence < highest:
            found.append(f"{each} was accepted after one under {highest}")
        if nodes.setdefault(each.fence, each.node) != each.node:
            found.append(f"{each}: {nodes[each.fence]} had that fence")
        if each.rev <= each.fence:
            found.append(f"{each} is older than its claim")
        highest = max(highest, each.fence)
    return found


def spans(notes: Iterable[Note]) -> dict[int, tuple[str, float, float]]:
    """When each run was at work: its node, its first and last sign of life."""
    found: dict[int, tuple[str, float, float]] = {}
    for note in notes:
        node, first, last = found.get(note.run, (note.node, note.at, note.at))
        found[note.run] = (node, min(first, note.at), max(last, note.at))
    return found


def overlap_s(notes: Iterable[Note], begin: float, end: float) -> float:
    """For how long of that time more than one run was at work, in seconds."""
    edges = []
    for _node, first, last in spans(notes).values():
        first, last = max(first, begin), min(last, end)
        if first < last:
            edges += [(first, 1), (last, -1)]
    total, running, before = 0.0, 0, begin
    for at, step in sorted(edges):
        if running > 1:
            total += at - before
        running, before = running + step, at
    return total


def _when(note: Note) -> float:
    return note.at


def _parse(line: str) -> Note:
    what, job, n, fence, node, pid, run, at = line.split()
    return Note(
        what=what,
        job=job,
        n=int(n),
        fence=int(fence),
        node=node,
        pid=int(pid),
        run=int(run),
        at=float(at),
    )
