"""Processes killed in the middle of commits and of ends: `python -m tests.faults.killed_workers`.

First some processes add to one shared model, and note each commit that was answered. Now and then
one is killed (`kill -9`), wherever it is, and another one takes its place. In the end the sum must
be no less than what was noted, and no more than that and one commit for each kill.

Then pairs of processes take events into a cache whose updates are kept in the tree, and end all
their sessions at the same time, in the middle of which one is killed. All events were acknowledged,
so in the end all must have been counted, each once. Exit code 0 if that is so, else 1.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import anyio
import anyio.to_thread
from aggregate import widgets

from moat_kv import coord, open_client
from moat_kv.state import State, attach
from tests.faults import click_events, serving, state_counts, state_worker

_ROOT = pathlib.Path(__file__).parents[2]
COMMITTERS = 3
#: How many widgets, so events, each of a pair has.
WIDGETS = 12
#: How long an end takes, about, in seconds: the kill comes within that.
END_S = 0.4


# The processes ------------------------------------------------------------------------------------


def commit(url: str, folder: pathlib.Path, number: int) -> None:
    """Add to the model until killed."""
    noted = click_events.Shared(folder / f"noted.{number}")
    with attach(url):
        state_worker.load()
        while True:
            with State(state_worker.Sum) as state:
                total = state.checkout(state_worker.Sum)
                total.n += 1
                state.commit(total)
            noted.value += 1


def end(url: str, folder: pathlib.Path) -> None:
    """Take one event of each widget, say so, and end."""
    widgets.WidgetUpdate.path = str(folder / "widgets.sqlite")
    with coord.Process(url, ttl_s=click_events.TTL_S, grace_s=0.3) as process:
        cache = coord.LruCache[widgets.WidgetUpdate]()
        for target in range(WIDGETS):
            event = {"parent_post_id": 0, "target_post_id": target, "event_type": "clicks"}
            update = widgets.update_of(process, event, init_cache=True)
            cache.set(update.resource_id, update)
        print("ready", flush=True)
        sys.stdin.readline()
        cache.expire_all()


def _started(what: str, url: str, folder: pathlib.Path, number: int = 0) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.faults.killed_workers", what, "--url", url]
    words += ["--folder", str(folder), "--number", str(number)]
    paths = os.pathsep.join([str(_ROOT), str(_ROOT / "examples")])
    return subprocess.Popen(
        words,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _ended(child: subprocess.Popen[str]) -> int:
    """Kill it if it still runs; its exit code."""
    child.kill()
    child.communicate()
    return child.returncode


# What happens to them -----------------------------------------------------------------------------


async def commits(folder: pathlib.Path, kills: int, seed: int) -> list[str]:
    """So many kills of those who commit; a line for each fault."""
    chance = random.Random(seed)
    noted = [click_events.Shared(folder / f"noted.{n}") for n in range(COMMITTERS)]
    async with serving.served(folder) as server:
        children = [_started("commit", server.url, folder, n) for n in range(COMMITTERS)]
        try:
            for _ in range(kills):
                number = chance.randrange(COMMITTERS)
                before = noted[number].value
                with anyio.fail_after(60):
                    while noted[number].value == before:  # it has come to its work
                        await anyio.sleep(0.01)
                await anyio.sleep(chance.uniform(0.0, 0.1))
                _ended(children[number])
                children[number] = _started("commit", server.url, folder, number)
        finally:
            for child in children:
                _ended(child)
        async with open_client(server.url) as client:
            found = (await client.get(state_counts.ENTRY)).value.state.n
    answered, killed = sum(each.value for each in noted), kills + COMMITTERS
    print(f"{killed} kills of who commits: {answered} commits answered, the sum is {found}")
    return [] if answered <= found <= answered + killed else [f"the sum is {found}"]


async def ends(folder: pathlib.Path, rounds: int, seed: int) -> list[str]:
    """So many pairs of whom one is killed while both end; a line for each fault."""
    chance = random.Random(seed)
    midway = 0
    async with serving.served(folder) as server:
        for _ in range(rounds):
            pair = [_started("end", server.url, folder) for _ in range(2)]
            try:
                for child in pair:
                    assert child.stdout is not None
                    line = await anyio.to_thread.run_sync(child.stdout.readline)
                    assert line == "ready\n", line
                for child in pair:
                    assert child.stdin is not None
                    child.stdin.write("\n")
                    child.stdin.flush()
                await anyio.sleep(chance.uniform(0.0, END_S))
                midway += _ended(pair[0]) != 0
                if await anyio.to_thread.run_sync(pair[1].wait):
                    return [f"a process ended with code {pair[1].returncode}"]
            finally:
                for child in pair:
                    _ended(child)
        left = await click_events.finish(server, folder)
    _, impressions, clicks = widgets.totals(str(folder / "widgets.sqlite"))
    # (the one that finished has counted one event more)
    found, wanted = impressions + clicks - 1, rounds * 2 * WIDGETS
    print(f"{rounds} pairs, {midway} killed before their end: {found} of {wanted} events")
    faults = [] if found == wanted else [f"{found} events, not {wanted}"]
    return faults + ([f"{left} entries left"] if left else [])


async def run(folder: pathlib.Path, kills: int, rounds: int, seed: int) -> list[str]:
    """All of it."""
    faults = []
    for name, part, count in (("commits", commits, kills), ("ends", ends, rounds)):
        place = folder / name
        place.mkdir()
        faults += await part(place, count, seed)
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("commit", "end"), help=argparse.SUPPRESS)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.what == "commit":
        commit(options.url, options.folder, options.number)
    elif options.what == "end":
        end(options.url, options.folder)
    if options.what:
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        faults = anyio.run(run, folder, options.kills, options.pairs, options.seed)
    print("\n".join(faults) or "no faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
