"""Clicks that several processes count, of which one is killed half-way.

    python -m tests.faults.click_events --events 1000000
    python -m tests.faults.click_events --events 20000 --safe
    python -m tests.faults.click_events --events 1000000 --safe --tasks 64

Each process takes its share of the events through the widget counter of `examples/aggregate`, into
one SQLite database. The one that is killed (`kill -9`) counts impressions, the others clicks, so
that the totals tell them apart. Clicks must be exact; of impressions there may be no more than the
killed process had been given, and with `--safe` (what is taken is kept in the tree first) no fewer
than were acknowledged to it, and at most as many more as were on their way: one, or with `--tasks`
(so many tasks of an event loop take events side by side, in each process) so many. Exit code 0 if
that is so, else 1.
"""

from __future__ import annotations

import argparse
import functools
import mmap
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import anyio
import anyio.to_thread
from aggregate import widgets

from moat_kv import coord, open_client
from moat_kv.coord import aio
from moat_kv.path import P
from tests.faults.serving import ServerProcess, served

PROCESSES = 4
WIDGETS = 500
#: Fewer than there are widgets, so that some go out while others hold them.
ENTRIES = 499
#: How long a process may be silent before others take over what it had, in seconds. (The
#: line of one that is killed breaks: nobody waits so long.)
TTL_S = 30.0
#: What the killed one had is found and executed by then, in seconds.
TAKEN_OVER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What came of it."""

    clicks: int
    impressions: int
    acknowledged: int
    """What the killed process had taken when it was killed."""
    took_s: float
    left: int
    """Entries that are left in the tree."""


class Shared:
    """A number that one process writes and another one reads."""

    def __init__(self, file: pathlib.Path) -> None:
        if not file.exists():
            file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 8)

    @property
    def value(self) -> int:
        found: int = struct.unpack("=q", self._map[:])[0]
        return found

    @value.setter
    def value(self, number: int) -> None:
        self._map[:] = struct.pack("=q", number)


def work(url: str, folder: pathlib.Path, events: int, number: int, *, safe: bool) -> None:
    """One process' part; number 0 is to be killed."""
    widgets.WidgetUpdate.path = str(folder / "widgets.sqlite")
    taken = Shared(folder / f"taken.{number}")

    def noted(stream: Iterator[widgets.Event]) -> Iterator[widgets.Event]:
        # The next one is asked for when the one before was taken.
        for position, event in enumerate(stream):
            taken.value = position
            yield {**event, "event_type": "clicks" if number else "impressions"}

    with coord.Process(url, ttl_s=TTL_S) as process:
        stream = noted(widgets.events(events, WIDGETS, number))
        taken.value = widgets.count(process, stream, entries=ENTRIES, init_cache=safe)


class AsyncWidgetUpdate(aio.Update):
    """The example's, for event loops; of the same kind, so that either executes what is left."""

    kind = widgets.WidgetUpdate.kind

    def merge(self, other: AsyncWidgetUpdate) -> None:
        for name, count in other.doc.items():
            self.doc[name] = self.doc.get(name, 0) + count

    async def execute(self) -> None:
        await anyio.to_thread.run_sync(self._write)

    def _write(self) -> None:
        with widgets.opened(widgets.WidgetUpdate.path) as connection:
            widgets.write(connection, self.execution_id, self.spec, self.doc)


async def work_in_tasks(
    url: str, folder: pathlib.Path, events: int, number: int, *, safe: bool, tasks: int
) -> None:
    """`work` with so many tasks side by side."""
    widgets.WidgetUpdate.path = str(folder / "widgets.sqlite")
    taken = Shared(folder / f"taken.{number}")
    seen = "clicks" if number else "impressions"
    async with aio.Process(url, ttl_s=TTL_S) as process:
        cache = aio.LruCache[AsyncWidgetUpdate](max_entries=ENTRIES)
        stream = widgets.events(events, WIDGETS, number)

        async def take() -> None:
            for event in stream:
                spec = {name: event[name] for name in ("parent_post_id", "target_post_id")}
                made = AsyncWidgetUpdate(
                    process,
                    "{parent_post_id}.{target_post_id}".format(**spec),
                    collection=widgets.WidgetUpdate,
                    spec=spec,
                    doc={seen: 1},
                    init_cache=safe,
                )
                await cache.set(made.resource_id, made)
                taken.value += 1

        async with anyio.create_task_group() as group:
            for _ in range(tasks):
                group.start_soon(take)
        await cache.expire_all()


async def run(
    folder: pathlib.Path, events: int, *, safe: bool, tasks: int = 0, kill: bool = True
) -> Totals:
    """Everything, on a server of its own."""
    share = events // PROCESSES
    async with served(folder) as server:
        began = time.monotonic()
        options = ["--tasks", str(tasks), *(["--safe"] if safe else [])]
        children = [_started(server, folder, share, number, options) for number in range(PROCESSES)]
        try:
            if kill:
                await _kill_half_way(children[0], folder, share)
            for child in children[1:] if kill else children:
                if await anyio.to_thread.run_sync(child.wait):
                    raise RuntimeError(f"a process ended with code {child.returncode}")
            took_s = time.monotonic() - began
        finally:
            for child in children:
                child.kill()
                child.wait()
        acknowledged = Shared(folder / "taken.0").value
        left = await finish(server, folder)
    _, impressions, clicks = widgets.totals(str(folder / "widgets.sqlite"))
    return Totals(
        clicks=clicks,
        impressions=impressions,
        acknowledged=acknowledged,
        took_s=took_s,
        left=left,
    )


def _started(
    server: ServerProcess, folder: pathlib.Path, share: int, number: int, options: list[str]
) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.faults.click_events", "--url", server.url]
    words += ["--folder", str(folder), "--events", str(share), "--number", str(number)]
    root = pathlib.Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "examples")])
    return subprocess.Popen([*words, *options], cwd=root, env={**os.environ, "PYTHONPATH": paths})


async def _kill_half_way(child: subprocess.Popen[bytes], folder: pathlib.Path, share: int) -> None:
    taken = Shared(folder / "taken.0")
    while taken.value < share // 2:
        if child.poll() is not None:
            raise RuntimeError(f"the process ended with code {child.returncode}")
        await anyio.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()


async def finish(server: ServerProcess, folder: pathlib.Path) -> int:
    """Have one process left, which takes over what the dead one had; the entries that stay."""
    widgets.WidgetUpdate.path = str(folder / "widgets.sqlite")

    def begin() -> coord.Process:
        process = coord.Process(server.url)
        widgets.update_of(process, next(widgets.events(1, 1, 0))).end_session()
        return process

    process = await anyio.to_thread.run_sync(begin)
    left = -1
    try:
        async with open_client(server.url) as client:
            with anyio.move_on_after(TAKEN_OVER_S):
                while left:
                    found = client.get_tree(P(":.moat.kv.lock"))
                    left = len([row async for row in found])
                    await anyio.sleep(0.1)
    finally:
        await anyio.to_thread.run_sync(process.stop)
    return left


def judged(found: Totals, events: int, *, safe: bool, tasks: int = 0) -> list[str]:
    """A line for each fault. One event beside is counted by the process that finishes."""
    share = events // PROCESSES
    wanted = share * (PROCESSES - 1)
    extra = found.impressions + found.clicks - wanted
    faults = []
    last = next(widgets.events(1, 1, 0))["event_type"]
    clicks = found.clicks - (last == "clicks")
    impressions = found.impressions - (last == "impressions")
    rate = (wanted + found.acknowledged) / found.took_s
    print(
        f"{events} events, {PROCESSES} processes, one killed"
        f"{', safe' if safe else ''}{f', {tasks} tasks each' if tasks else ''}:"
        f" {found.took_s:.0f} s, {rate:.0f} events a second;"
        f" clicks {clicks} of {wanted}, impressions {impressions} of {found.acknowledged}"
        f" acknowledged, {found.left} entries left",
        flush=True,
    )
    if clicks != wanted:
        faults.append(f"{clicks} clicks, not {wanted}")
    if impressions > found.acknowledged + max(tasks, 1):
        faults.append(f"{impressions} impressions of {found.acknowledged}")
    if safe and impressions < found.acknowledged:
        faults.append(f"{impressions} impressions, though {found.acknowledged} were acknowledged")
    if found.left or extra < 0:
        faults.append(f"{found.left} entries left")
    return faults


def _work(options: argparse.Namespace) -> None:
    place, events, number = options.folder, options.events, options.number
    if not options.tasks:
        work(options.url, place, events, number, safe=options.safe)
        return
    part = functools.partial(work_in_tasks, safe=options.safe, tasks=options.tasks)
    anyio.run(part, options.url, place, events, number)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--safe", action="store_true")
    parser.add_argument("--tasks", type=int, default=0, help="0: one thread, without an event loop")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.url is not None:
        _work(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)

        async def all_() -> Totals:
            return await run(place, options.events, safe=options.safe, tasks=options.tasks)

        found = anyio.run(all_)
    faults = judged(found, options.events, safe=options.safe, tasks=options.tasks)
    print("\n".join(faults) or "no faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
