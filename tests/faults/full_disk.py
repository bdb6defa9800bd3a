"""A disk that runs full under a server: `python -m tests.faults.full_disk --rounds 20`.

Each round has clients write through the real server process, takes the room from the disk under
it, and gives it back after a while. Meanwhile writes must be refused by name, `state` must say what
the trouble is, and reads must go on; afterwards writes must be taken again without a restart. Then
the server is killed and started anew: what was answered must be there, what was refused must not.

The room is that of a small tmpfs where one can be mounted (as root), filled with another file;
else, or with `--limit`, the size that the server's process may give a file (RLIMIT_FSIZE). Exit
code 0 if all was so, else 1.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import anyio

from moat_kv import Client, P, errors, open_client
from tests.faults import writers
from tests.faults.journal import Journal
from tests.faults.serving import ServerProcess, served

#: Several times as much as the log keeps of what is written here.
DISK_BYTES = 48 << 20
#: How long there is no room, in seconds.
FULL_S = 0.5
#: By then so much was read and refused; on a busy machine that may take longer.
ENOUGH = 20
CLIENTS = 3
PADDING = 500
#: What must come about by itself does so within so many seconds.
LIMIT_S = 30.0


class Disk(Protocol):
    """Room that can be taken and given back."""

    def take(self) -> None:
        """There is no more room."""

    def give_back(self) -> None:
        """There is room again."""


class SmallDisk:
    """A tmpfs, filled with another file."""

    def __init__(self, place: pathlib.Path) -> None:
        self._filler = place / "filler"

    def take(self) -> None:
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def give_back(self) -> None:
        self._filler.unlink(missing_ok=True)


class FileLimit:
    """The size of the largest file that a process may write."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server

    def take(self) -> None:
        # What is written next is at the end of one of these.
        sizes = [one.stat().st_size for one in self._server.data.rglob("tree*")]
        self._server.limit(resource.RLIMIT_FSIZE, min(sizes))

    def give_back(self) -> None:
        _, hard = resource.prlimit(self._server.pid, resource.RLIMIT_FSIZE)
        self._server.limit(resource.RLIMIT_FSIZE, hard)


def can_mount() -> bool:
    return os.geteuid() == 0 and sys.platform == "linux"


@contextmanager
def small_disk(place: pathlib.Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount a small tmpfs. Raises CalledProcessError where that is not allowed."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "moat-kv-test", str(place)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@asynccontextmanager
async def server_on(
    folder: pathlib.Path, *, mounted: bool, size_bytes: int = DISK_BYTES
) -> AsyncIterator[tuple[ServerProcess, Disk]]:
    """A server, and the disk under it."""
    if mounted:
        with small_disk(folder / "disk", size_bytes) as disk:
            async with served(folder, data=folder / "disk" / "data") as server:
                yield server, disk
    else:
        async with served(folder) as server:
            yield server, FileLimit(server)


class Round:
    """One time without room."""

    def __init__(
        self,
        server: ServerProcess,
        disk: Disk,
        chance: random.Random,
        *,
        padding: int = PADDING,
    ) -> None:
        self._padding = padding
        self._server = server
        self._disk = disk
        self._chance = chance
        self.faults: list[str] = []
        self.reads = 0
        self.trouble = ""

    async def run(self, journal: Journal) -> None:
        async with open_client(self._server.url, request_timeout_s=LIMIT_S) as reader:
            work = writers.Writers(
                journal, self._chance, padding=self._padding, persist=True, pause_s=0.005
            )
            async with open_client(self._server.url, request_timeout_s=LIMIT_S) as writer:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(work.run, [writer] * CLIENTS)
                    await self._watch_it_fail(reader, work, journal)
                    work.stopped = True
        await self._server.kill()
        await self._server.start()
        async with open_client(self._server.url) as client:
            self.faults += journal.faults(await writers.shown(client))

    async def _watch_it_fail(self, reader: Client, work: writers.Writers, journal: Journal) -> None:
        await anyio.sleep(self._chance.uniform(0.05, 0.4))
        self._disk.take()
        try:
            await self._no_room(reader, work, journal)
        finally:
            self._disk.give_back()
        answered = journal.answered
        with anyio.move_on_after(LIMIT_S) as scope:
            while journal.answered < answered + 10 or await self._trouble(reader):
                await anyio.sleep(0.02)
        if scope.cancelled_caught:
            self.faults.append("with room again, writes are still refused")

    async def _no_room(self, reader: Client, work: writers.Writers, journal: Journal) -> None:
        with anyio.move_on_after(LIMIT_S) as scope:
            while not self.trouble:
                self.trouble = await self._trouble(reader) or ""
                await anyio.sleep(0.02)
        if scope.cancelled_caught:
            self.faults.append("no trouble was told while there was no room")
            return
        began, reads, refused = anyio.current_time(), self.reads, journal.refused
        with anyio.move_on_after(LIMIT_S):
            while (
                anyio.current_time() < began + FULL_S
                or self.reads < reads + ENOUGH
                or journal.refused < refused + ENOUGH
            ):
                await reader.get(P("fault.hot:0"))
                self.reads += 1
                await anyio.sleep(0.001)
        if not isinstance(work.refusal, errors.StorageFailed):
            self.faults.append(f"writes were refused with {work.refusal!r}")

    @staticmethod
    async def _trouble(reader: Client) -> str | None:
        trouble: str | None = (await reader.state())["trouble"]
        return trouble


async def run(
    folder: pathlib.Path, rounds: int, seed: int, *, mounted: bool, size_bytes: int, padding: int
) -> int:
    chance = random.Random(seed)
    journal = Journal()
    faults = reads = 0
    disk_of = server_on(folder, mounted=mounted, size_bytes=size_bytes)
    async with disk_of as (server, disk):
        for number in range(1, rounds + 1):
            one = Round(server, disk, chance, padding=padding)
            await one.run(journal)
            faults += len(one.faults)
            reads += one.reads
            for line in one.faults:
                print(f"round {number}: {line}", flush=True)
            if number % 5 == 0 or number == rounds:
                print(
                    f"{number} times without room ({'tmpfs' if mounted else 'RLIMIT_FSIZE'}):"
                    f" {journal.answered} writes answered, {journal.refused} refused,"
                    f" {reads} reads meanwhile, {faults} faults; trouble: {one.trouble!r}",
                    flush=True,
                )
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", action="store_true", help="limit files, mount nothing")
    parser.add_argument("--disk-mb", type=int, default=DISK_BYTES >> 20)
    parser.add_argument("--padding", type=int, default=PADDING, help="bytes in each value")
    options = parser.parse_args()
    mounted = can_mount() and not options.limit
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(
            lambda: run(
                pathlib.Path(folder),
                options.rounds,
                options.seed,
                mounted=mounted,
                size_bytes=options.disk_mb << 20,
                padding=options.padding,
            )
        )


if __name__ == "__main__":
    sys.exit(main())
