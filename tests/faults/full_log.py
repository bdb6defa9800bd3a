"""A log that fills its disk by itself: `python -m tests.faults.full_log --rounds 5`.

Each round has a server on a small tmpfs, which is mounted for it (as root), and clients that write
ever new entries until nothing is taken any more. Nothing else is on that disk, so nobody can make
room outside. The server is killed there and started anew, and must still serve all that was
answered. Then entries are deleted: each deletion must be taken, `state` must say what is wrong, and
after some of them values must be taken again by themselves. In the end the server is killed once
more: what was answered must be there, what was refused or deleted must not. Exit code 0 if all was
so, else 1.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from dataclasses import dataclass, field

import anyio

from moat_kv import Client, Path, errors, open_client
from tests.faults import full_disk
from tests.faults.serving import ServerProcess

#: Requests that each client has in flight, and clients.
IN_FLIGHT = 16
CLIENTS = 2
#: What must come about by itself does so within so many seconds.
LIMIT_S = 30.0
#: So many refusals in a row: the disk is full.
ENOUGH = 50
#: So many values have to be taken again: the deletions make room for several times as many.
ENOUGH_AGAIN = 100
PLACE = Path("full")


@dataclass(kw_only=True)
class Round:
    """One disk, filled and emptied."""

    server: ServerProcess
    padding: int
    kept: dict[Path, int] = field(default_factory=dict)
    """What was answered, by path: the revision."""
    refused: int = 0
    again: int = 0
    """Values that were taken after the first deletion."""
    deleted: int = 0
    trouble: str = ""
    faults: list[str] = field(default_factory=list)
    number: int = 0
    stopped: bool = False
    refusal: str = ""

    async def run(self) -> None:
        await self._fill()
        await self._compare("full")
        await self.server.kill()
        await self.server.start()
        await self._compare("full, after a start")
        async with open_client(self.server.url, request_timeout_s=LIMIT_S) as client:
            await self._delete(client)
            await self._write_again(client)
        await self._compare("emptied")
        await self.server.kill()
        await self.server.start()
        await self._compare("emptied, after a start")

    async def _fill(self) -> None:
        async with (
            open_client(self.server.url, request_timeout_s=LIMIT_S) as one,
            open_client(self.server.url, request_timeout_s=LIMIT_S) as other,
            anyio.create_task_group() as tasks,
        ):
            for client in (one, other):
                for _ in range(IN_FLIGHT):
                    tasks.start_soon(self._write_until_refused, client)

    async def _write_until_refused(self, client: Client) -> None:
        misses = 0
        while misses < ENOUGH:
            misses = 0 if await self._set(client) else misses + 1

    async def _set(self, client: Client) -> bool:
        self.number += 1
        path = PLACE / self.number
        try:
            result = await client.set(path, b"x" * self.padding)
        except errors.StorageFailed as exc:
            self.refused += 1
            self.refusal = str(exc)
            return False
        self.kept[path] = result.rev
        return True

    async def _delete(self, client: Client) -> None:
        """The oldest third, one by one, while another one goes on asking for values.

        (Every third one would leave pages of the file that are half full, and no room.)
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write_until_stopped, client)
            for path in list(self.kept)[: len(self.kept) // 3]:
                try:
                    await client.delete(path)
                except errors.StorageFailed as exc:
                    self.faults.append(f"a deletion was refused: {exc}")
                    break
                del self.kept[path]
                self.deleted += 1
                self.trouble = (await client.state())["trouble"] or self.trouble
            self.stopped = True

    async def _write_until_stopped(self, client: Client) -> None:
        while not self.stopped:
            self.again += await self._set(client)

    async def _write_again(self, client: Client) -> None:
        # Those that came beside the deletions may have filled the disk anew.
        with anyio.move_on_after(LIMIT_S):
            while self.again < ENOUGH_AGAIN:
                self.again += await self._set(client)
        if self.again < ENOUGH_AGAIN:
            self.faults.append(
                f"{self.deleted} deletions made room for {self.again} values: {self.refusal}"
            )
        if await self._set(client) and (trouble := (await client.state())["trouble"]):
            self.faults.append(f"values are taken, but there is trouble: {trouble}")

    async def _compare(self, when: str) -> None:
        async with open_client(self.server.url) as client:
            there = {PLACE + row.path: row.rev async for row in client.get_tree(PLACE)}
        if there != self.kept:
            lost = len(self.kept.keys() - there.keys())
            false = len(there.keys() - self.kept.keys())
            self.faults.append(f"{when}: {lost} lost, {false} that were not answered")


async def run(folder: pathlib.Path, rounds: int, size_bytes: int, padding: int) -> int:
    faults = 0
    for number in range(1, rounds + 1):
        place = folder / str(number)
        place.mkdir()
        disk = full_disk.server_on(place, mounted=True, size_bytes=size_bytes)
        async with disk as (server, _):
            one = Round(server=server, padding=padding)
            await one.run()
        faults += len(one.faults)
        print(
            f"round {number}: {len(one.kept) + one.deleted} writes answered, {one.refused} refused,"
            f" {one.deleted} deletions answered; trouble: {one.trouble!r}",
            *one.faults,
            sep="\n  ",
            flush=True,
        )
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--disk-mb", type=int, default=24)
    parser.add_argument("--padding", type=int, default=2_000, help="bytes in each value")
    options = parser.parse_args()
    if not full_disk.can_mount():
        print("only root can mount a small disk")
        return 1
    size_bytes = options.disk_mb << 20
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options.rounds, size_bytes, options.padding)


if __name__ == "__main__":
    sys.exit(main())
