"""Hostile clients at a real server: `python -m tests.faults.soak --seconds 60`.

A process full of hostile clients sends what it likes, over many lines at a time: random bytes,
requests of all kinds with some bytes changed, frames that are too large or never end, floods of
requests whose answers nobody reads, watches that nobody reads, lines that come and go. Beside it an
ordinary client writes and reads an entry of its own, and notes how long that takes. It must never
be refused or wait for longer than `WAIT_S`, and the server's memory must stay below `GROWTH_BYTES`
above what it was. Exit code 0 if all was so, else 1.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.abc

from moat_kv import P, errors, open_client, transport
from moat_kv.proto import frames, messages
from tests.faults import fuzz_target
from tests.faults.serving import ServerProcess, served

_ROOT = pathlib.Path(__file__).parents[2]
#: So many hostile lines at a time.
LINES = 16
#: What the ordinary client may have to wait for one answer, in seconds.
WAIT_S = 2.0
#: Of each part of a run there is so much at least, or the time is over: machines may be slow.
ENOUGH, ENOUGH_WITHIN_S = 25, 40.0
#: What the server's memory may grow by, in bytes: some megabytes for each of the lines.
GROWTH_BYTES = 128 * 1024 * 1024
#: The state of the server is printed so often, in seconds.
TELL_S = 10.0
OWN = P("ordinary")

_LOST = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


# The hostile process ----------------------------------------------------------------------------


class Hostile:
    """What one hostile line does; `stream` is its line."""

    def __init__(self, stream: anyio.abc.ByteStream, chance: random.Random) -> None:
        self._stream = stream
        self._chance = chance

    async def random_bytes(self) -> None:
        for _ in range(self._chance.randrange(1, 30)):
            await self._stream.send(self._chance.randbytes(self._chance.randrange(1, 5_000)))

    async def odd_requests(self) -> None:
        """Requests of all kinds, some with a byte changed, and their answers are read."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read_all)
            for _ in range(self._chance.randrange(1, 100)):
                source = fuzz_target.Source(self._chance.randbytes(300))
                body = bytearray(fuzz_target.request(source, []))
                if body and self._chance.random() < 0.3:
                    body[self._chance.randrange(len(body))] = self._chance.randrange(256)
                await self._stream.send(frames.frame(bytes(body)))
            await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()

    async def oversized(self) -> None:
        size = self._chance.choice([2 << 20, 60 << 20, 1 << 31])
        await self._stream.send(struct.pack(">I", size))
        for _ in range(self._chance.randrange(40)):
            await self._stream.send(self._chance.randbytes(100_000))

    async def never_ending(self) -> None:
        """The start of a frame, byte by byte."""
        await self._stream.send(struct.pack(">I", (1 << 20) - 1))
        for _ in range(self._chance.randrange(2_000)):
            await self._stream.send(b"\x91")

    async def greedy(self) -> None:
        """Ask for a large value over and over and read nothing."""
        arguments = {"path": P("large")}
        value = b"\xc5\xff\xff" + bytes(0xFFFF)
        await self._stream.send(messages.pack((1, "set", arguments, value)))
        for seq in range(2, 2_000):
            await self._stream.send(messages.pack((seq, "get", arguments, None)))

    async def many_writes(self) -> None:
        """Writes as fast as they go, and nothing is read."""
        value = b"\xc5\xff\xff" + bytes(0xFFFF)
        for seq in range(1, 400):
            arguments = {"path": P("flood") / (seq % 50)}
            await self._stream.send(messages.pack((seq, "set", arguments, value)))

    async def many_streams(self) -> None:
        """Watches of everything, fetches, and lists, and nothing is read."""
        for seq in range(1, 1_000):
            action = self._chance.choice(["watch", "get_tree", "list", "monitor", "history"])
            name = "topic" if action == "monitor" else "path"
            await self._stream.send(messages.pack((seq, action, {name: P(":")}, None)))

    async def deep(self) -> None:
        for depth in (60, 1_000, 500_000):
            body = b"\x94\x01\xa3set" + b"\x91" * depth + b"\xc0\xc0"
            await self._stream.send(frames.frame(body))

    async def _read_all(self) -> None:
        while True:
            await self._stream.receive()


KINDS: dict[str, Callable[[Hostile], Awaitable[None]]] = {
    kind.__name__: kind
    for kind in (
        Hostile.random_bytes,
        Hostile.odd_requests,
        Hostile.oversized,
        Hostile.never_ending,
        Hostile.greedy,
        Hostile.many_writes,
        Hostile.many_streams,
        Hostile.deep,
    )
}


async def attack(socket: str, seed: int, kinds: Sequence[str]) -> None:
    """One line after the other, on `LINES` tasks, until killed; a dot for each on stdout."""

    async def go_on(chance: random.Random) -> None:
        while True:
            try:
                async with await transport.settled(await anyio.connect_unix(socket)) as stream:
                    with anyio.move_on_after(chance.uniform(0.1, 3.0)):
                        await KINDS[chance.choice(kinds)](Hostile(stream, chance))
                        await anyio.sleep(chance.uniform(0, 1.0))
            except* _LOST:
                pass
            print(end=".", flush=True)

    async with anyio.create_task_group() as tasks:
        for number in range(LINES):
            tasks.start_soon(go_on, random.Random(seed * 1_000 + number))


# The ordinary client ----------------------------------------------------------------------------


@dataclass(kw_only=True)
class Found:
    """What the ordinary client noticed: how long reads and writes took, in seconds."""

    gets: list[float] = field(default_factory=list)
    sets: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    memory_bytes: int = 0
    """The most that the server had."""


async def use(
    server: ServerProcess,
    seconds: float,
    found: Found,
    *,
    is_enough: Callable[[], bool] = lambda: True,
) -> None:
    """Write and read one's own entry for a while, and until that was enough."""
    until = time.monotonic() + seconds

    def goes_on() -> bool:
        now = time.monotonic()
        some = is_enough() and len(found.gets) >= ENOUGH
        return now < until or (not some and now < until + ENOUGH_WITHIN_S)

    async with open_client(server.url, request_timeout_s=30) as client:
        number = 0
        told_at = time.monotonic()
        while goes_on():
            number += 1
            try:
                began = time.perf_counter()
                await client.set(OWN, number)
                written = time.perf_counter()
                there = (await client.get(OWN)).get("value")
                found.sets.append(written - began)
                found.gets.append(time.perf_counter() - written)
            except errors.MoatKvError as exc:
                found.faults.append(f"refused: {exc!r}")
                return
            # The others may delete it, as anybody may.
            if there not in (number, None):
                found.faults.append(f"{there} was read after {number} was written")
            memory = server.memory_bytes()
            found.memory_bytes = max(found.memory_bytes, memory)
            if time.monotonic() > told_at + TELL_S:
                told_at = time.monotonic()
                facts = await client.state()
                print(
                    f"memory {memory / 1e6:.0f} MB, {facts['entries']} entries,"
                    f" {facts['connections']} lines, {facts['watchers']} watchers,"
                    f" {facts['sessions']} sessions",
                    flush=True,
                )
            await anyio.sleep(0.01)


def _spawn(
    server: ServerProcess, seed: int, kinds: Sequence[str], dots: pathlib.Path
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.faults.soak", "--child", str(server.socket)]
    command += ["--seed", str(seed), "--only", *kinds]
    with dots.open("wb") as out:
        return subprocess.Popen(command, cwd=_ROOT, stdout=out)


async def run(
    folder: pathlib.Path, seconds: float, seed: int, kinds: Sequence[str]
) -> tuple[Found, Found, int, int]:
    """What was found without and with them, how many hostile lines, and the memory at the end."""
    calm, attacked = Found(), Found()
    async with served(folder) as server:
        await use(server, min(5.0, seconds / 2), calm)
        dots = folder / "dots.txt"
        process = _spawn(server, seed, kinds, dots)
        try:
            await use(server, seconds, attacked, is_enough=lambda: dots.stat().st_size >= ENOUGH)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        out = dots.read_bytes()
        if not server.is_alive():
            attacked.faults.append(f"the server has ended: {server.log.read_text()[-2000:]}")
            return calm, attacked, len(out), 0
        async with open_client(server.url) as client:
            with anyio.move_on_after(30) as scope:
                while (await client.state())["connections"] > 1:
                    await anyio.sleep(0.05)
            if scope.cancelled_caught:
                attacked.faults.append(f"connections are left: {await client.state()}")
        if "Traceback" in server.log.read_text():
            attacked.faults.append(f"the server says: {server.log.read_text()[-3000:]}")
        return calm, attacked, len(out), server.memory_bytes()


def judge(calm: Found, attacked: Found, *, wait_s: float = WAIT_S) -> list[str]:
    """A line for each way in which it was too much; `wait_s`: the longest that one may wait."""
    faults = [*calm.faults, *attacked.faults]
    longest = max([*attacked.gets, *attacked.sets], default=wait_s + 1)
    if longest > wait_s:
        faults.append(f"an answer took {longest:.2f} s")
    growth = attacked.memory_bytes - calm.memory_bytes
    if growth > GROWTH_BYTES:
        faults.append(f"the server's memory grew by {growth / 1e6:.0f} MB")
    return faults


def _times(values: list[float]) -> str:
    ordered = sorted(values)
    shown = (ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1])
    return "/".join(f"{value * 1e3:.1f}" for value in shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", choices=KINDS, default=list(KINDS), help="just these kinds"
    )
    parser.add_argument("--child", metavar="SOCKET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        anyio.run(attack, options.child, options.seed, options.only)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = anyio.run(run, pathlib.Path(folder), options.seconds, options.seed, options.only)
    calm, attacked, lines, end_bytes = found
    faults = judge(calm, attacked)
    for line in faults:
        print(line)
    for name, one in (("calm", calm), ("attacked", attacked)):
        print(
            f"{name}: {len(one.gets)} gets in {_times(one.gets)} ms (median/99 %/most),"
            f" sets in {_times(one.sets)} ms; server's memory {one.memory_bytes / 1e6:.0f} MB"
        )
    print(
        f"{lines} hostile lines in {options.seconds:g} s, {len(faults)} faults;"
        f" memory at the end {end_bytes / 1e6:.0f} MB"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
