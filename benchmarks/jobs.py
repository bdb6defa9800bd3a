"""Jobs: how soon they begin, how soon they are told, what many of them cost while they wait.

The server, the runner and the jobs' processes are those that anybody starts. Linux only.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.abc

import moat_kv
from benchmarks import calls, outcome, peers, rounds
from benchmarks.stage import OURS
from moat_kv import Client, P, Path, config
from moat_kv.client import results
from moat_kv_runner import commands
from moat_kv_runner.children import processes

GROUP, NODE = P("default"), "bench"
PLACES = config.Places()
#: The first of anything finds nothing warm.
WARM_UP = 3
#: How long after it was stored a job is due, in seconds.
AHEAD_S = 0.15
#: Nothing here takes longer, in seconds.
LIMIT_S = 120.0
#: How long a node with many jobs is left alone before it is looked at, in seconds.
SETTLE_S = 3.0
#: Between two changes, so that each is seen and not only the newest, in seconds.
PAUSE_S = 0.002
MESSAGE_ROUNDS = 5

INLINE, CHILD = config.ISOLATIONS[1], config.ISOLATIONS[0]
WATCHER = "plain watcher"

START_AIMS_MS = {INLINE: 10.0, CHILD: 50.0}
MESSAGE_AIM = 3.0
IDLE_AIM_S = 0.02

FIRST_LINE = "import time\nreturn time.time()"
#: Tells when it was told, by the same clock.
LISTENER = """\
import time
await _self.watch(_P(watched))
await _client.set(_P(watched) / "ready", 1)
late = []
async for msg in _info:
    if isinstance(msg, _cls.ChangeMsg) and "value" in msg:
        late.append(time.time() - msg.value["at"])
        if msg.value["last"]:
            return late
"""
WAITER = """\
async for msg in _info:
    if isinstance(msg, _cls.ReadyMsg):
        await _client.set(_P("waiting") / number, 1)
"""


class Node:
    """A runner, and all processes that it has."""

    def __init__(self, client: Client, pid: int) -> None:
        self.client = client
        self._pid = pid

    def _pids(self) -> list[int]:
        return [self._pid, *processes.descendants(self._pid)]

    def cpu_s(self) -> float:
        """The processor time of all of them so far, in seconds; none may end meanwhile."""
        return sum(map(_cpu_s, self._pids()))

    def memory_bytes(self) -> int:
        """What all of them have together; what several share is counted once."""
        return sum(map(_share_of_memory, self._pids()))

    async def store(self, name: str, text: str, variables: list[str] | None = None) -> None:
        value = {"code": text, "is_async": True, "vars": variables or []}
        await self.client.set(PLACES.proc + P(name), value)

    async def job(self, path: Path, code: str, target: float, **data: Any) -> None:
        place = commands.job_path(PLACES, "any", GROUP, path)
        await self.client.set(place, {"code": P(code), "target": target, "data": data})

    async def result(self, path: Path) -> Any:
        """As soon as its run has ended."""
        place = commands.state_path(PLACES, "any", GROUP, path)
        with anyio.fail_after(LIMIT_S):
            async with self.client.watch(place, fetch=True, max_depth=0) as events:
                async for event in events:
                    if isinstance(event, moat_kv.WatchEvent) and "value" in event:
                        if event.value.get("reason", "").startswith("failed"):
                            raise RuntimeError(event.value["reason"])
                        if event.value.get("stopped"):
                            return event.value.get("result")
        raise AssertionError("the watch has ended")


def _cpu_s(pid: int) -> float:
    """Exactly; what `ps` tells is counted by who happens to run a hundred times a second."""
    threads = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


def _share_of_memory(pid: int) -> int:
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the system does not tell the memory of process {pid}")


@contextmanager
def _runner(url: str, settings: pathlib.Path, isolate: str) -> Iterator[int]:
    """`moat kv run all`, as anybody starts it; its process."""
    settings.write_text(f"client: {{url: '{url}'}}\n")
    command = [sys.executable, "-m", "moat_kv_cli", "kv", "run", "all", "--name", NODE]
    command += ["--config", str(settings), "--isolate", isolate]
    with peers.process(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        if not child.stdout.readline().startswith("runner"):
            raise RuntimeError("the runner did not start")
        yield child.pid


@asynccontextmanager
async def _node(place: peers.Place, isolate: str) -> AsyncIterator[tuple[Node, Client]]:
    """A server that keeps nothing on disk, a runner, and two clients in this process."""
    with (
        place.server(engine="memory") as server,
        _runner(server.url, place.new("settings"), isolate) as pid,
    ):
        async with server.client() as client, server.client() as other:
            yield Node(client, pid), other


# Beginning --------------------------------------------------------------------------------------


async def _starts(node: Node, count: int, ahead_s: float) -> list[float]:
    """From when each of so many jobs was due, or stored, to its first line; in seconds."""
    late = []
    for number in range(count + WARM_UP):
        path = Path("start", str(ahead_s), number)
        due = time.time() + ahead_s
        await node.job(path, "first.line", due)
        late.append(await node.result(path) - due)
    return late[WARM_UP:]


async def _start(place: peers.Place, isolate: str, count: int) -> list[outcome.Figure]:
    async with _node(place, isolate) as (node, _):
        await node.store("first.line", FIRST_LINE)
        due = await _starts(node, count, AHEAD_S)
        stored = await _starts(node, count, 0.0)
    limit_ms = START_AIMS_MS[isolate]
    figures = []
    for what, late in (("its time", due), ("`set -t 0`", stored)):
        p50_ms, p95_ms = rounds.median(late) * 1e3, sorted(late)[int(len(late) * 0.95)] * 1e3
        aim = outcome.Aim(
            text=f"p50 at most {limit_ms:g} ms", value=p50_ms, limit=limit_ms, unit=" ms"
        )
        figures.append(
            outcome.Figure(
                what=f"start of a job, {isolate}, from {what} to its first line",
                unit="s",
                ours=p50_ms / 1e3,
                aim=aim,
                note=f"{count} starts, p95 {p95_ms:.1f} ms",
            )
        )
    return figures


# Being told -------------------------------------------------------------------------------------


async def _told(node: Node, count: int) -> float:
    """The median time from `set` here to the script's `_info`, in seconds."""
    watched = Path("told", str(time.time_ns()))
    path = Path("listener", watched[1])
    await node.job(path, "listener", time.time(), watched=str(watched))
    await _until(node.client, watched / "ready")
    await _sets(node, watched, count)
    return rounds.median(await node.result(path))


async def _sets(node: Node, path: Path, count: int) -> None:
    for number in range(count):
        await node.client.set(path, {"at": time.time(), "last": number == count - 1})
        await anyio.sleep(PAUSE_S)


async def _seen(node: Node, client: Client, count: int) -> float:
    """The same for a plain watch of another client in this process."""
    watched = Path("seen", str(time.time_ns()))
    late: list[float] = []

    async def watch(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with client.watch(watched, fetch=True, max_depth=0) as events:
            async for event in events:
                if isinstance(event, results.Ready):
                    task_status.started()
                elif isinstance(event, moat_kv.WatchEvent):
                    late.append(time.time() - event.value["at"])
                    if event.value["last"]:
                        return

    async with anyio.create_task_group() as tasks:
        await tasks.start(watch)
        await _sets(node, watched, count)
    return rounds.median(late)


async def _until(client: Client, path: Path) -> None:
    with anyio.fail_after(LIMIT_S):
        async with client.watch(path, fetch=True, max_depth=0) as events:
            async for event in events:
                if isinstance(event, moat_kv.WatchEvent) and "value" in event:
                    return


async def _message(place: peers.Place, isolate: str) -> outcome.Figure:
    count = place.scale.calls
    async with _node(place, isolate) as (node, other):
        await node.store("listener", LISTENER, ["watched"])
        series = await rounds.alternate(
            {OURS: lambda: _told(node, count), WATCHER: lambda: _seen(node, other, count)},
            min(place.scale.rounds, MESSAGE_ROUNDS),
        )
    aim = outcome.Aim(
        text=f"p50 at most {MESSAGE_AIM:g} times a plain watcher's",
        value=series.ratio(OURS, WATCHER),
        limit=MESSAGE_AIM,
    )
    return calls.figure(
        f"message to a script, {isolate}, from the call of set", "s", series, aim=aim
    )


# Waiting ----------------------------------------------------------------------------------------


async def _many(place: peers.Place, isolate: str) -> list[outcome.Figure]:
    """What a node with many jobs costs that wait for messages."""
    count, idle_s = place.scale.jobs, place.scale.idle_s
    async with _node(place, isolate) as (node, _):
        await node.store("waiter", WAITER, ["number"])
        await _begin(node, 0)
        before = node.memory_bytes()
        for number in range(1, count + 1):
            await _begin(node, number)
        memory = (node.memory_bytes() - before) / count
        await anyio.sleep(min(SETTLE_S, idle_s))
        used = node.cpu_s()
        await anyio.sleep(idle_s)
        used = (node.cpu_s() - used) / idle_s
    aim = outcome.Aim(
        text="below 2 % of a core", value=used * 100, limit=IDLE_AIM_S * 100, unit=" %"
    )
    load = outcome.Figure(
        what=f"{count} waiting jobs, {isolate}: processor time in a second",
        unit="s",
        ours=used,
        aim=aim,
        note=f"of the runner and all its processes, over {idle_s:g} s",
    )
    each = outcome.Figure(
        what=f"memory of a waiting job, {isolate}",
        unit="B",
        ours=memory,
        note="by how much all processes of the runner grow; what they share is counted once",
    )
    return [load, each]


async def _begin(node: Node, number: int) -> None:
    await node.job(Path("waiter", number), "waiter", time.time(), number=number)
    await _until(node.client, Path("waiting", number))


async def jobs(place: peers.Place) -> list[outcome.Figure]:
    """Jobs: how soon they begin and are told, and what they cost while they wait."""
    count = max(2, place.scale.calls // 6)
    figures = []
    for isolate in (INLINE, CHILD):
        figures += await _start(place, isolate, count)
    for isolate in (INLINE, CHILD):
        figures.append(await _message(place, isolate))
    for isolate in (INLINE, CHILD):
        figures += await _many(place, isolate)
    return figures
