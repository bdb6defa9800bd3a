"""kill -9 of servers and NATS nodes under writing: `python -m tests.faults.kill_network`.

Three NATS nodes and three servers, each with clients that write without pause: plain sets and
deletions of their own keys, sets of keys that all of them share, compare-and-sets. Now and then a
server is killed and started again, or a NATS node, the stream's leader included. In the end, when
all are back and no write waits, every write that was answered must be there, or a later one that
was sent, or it must be among the conflicts; and all servers must have the same tree, byte for byte.

Exit code 0 if everything was as it has to be, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.to_thread

from moat_kv import Client, P, errors, open_client
from moat_kv.client import comparing
from moat_kv.engine import conflicts
from moat_kv.path import Path
from moat_kv.testing import nats
from tests.faults import history, membership, recording
from tests.faults.serving import ServerProcess

#: How many clients write at each server, and how many keys each of them has.
CLIENTS = 2
OWN_KEYS = 40
SHARED_KEYS = 5
#: All has to be in order again so soon after the last fault, in seconds.
SETTLE_S = 60.0
#: A client pauses so long between two writes, in seconds: this sets the rate.
PAUSE_S = 0.01
#: So many records of a path are kept: for the shared ones, to see what was written over.
HISTORY = 1_000


@dataclass(kw_only=True)
class Box:
    """What is running."""

    nodes: Sequence[nats.Node]
    servers: Sequence[ServerProcess]
    recorder: history.Recorder = field(default_factory=history.Recorder)
    writing_s: float = 0.0

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]


@contextlib.asynccontextmanager
async def box(folder: pathlib.Path) -> AsyncIterator[Box]:
    """Three nodes, and a server for each, which goes to its own node first."""
    with contextlib.ExitStack() as stack:
        make = nats.cluster(3, folder / "nats")
        nodes = await anyio.to_thread.run_sync(stack.enter_context, make)
        config = folder / "config.yaml"
        config.write_text(f"server: {{nats: {{history: {HISTORY}}}}}\n")
        servers = []
        try:
            for number in range(3):
                order = [nodes[(number + other) % 3].address for other in range(3)]
                place = folder / f"server{number}"
                place.mkdir()
                engine = f"nats://{','.join(order)}/box"
                options = ["--engine", engine]
                server = ServerProcess(place, name=f"n{number}", config=config, options=options)
                await server.start()
                servers.append(server)
            yield Box(nodes=nodes, servers=servers)
        finally:
            for server in servers:
                if server.is_alive():
                    await server.kill()


async def write(box: Box, number: int, chance: random.Random) -> None:
    """One client's work, until cancelled; it goes to its own server first."""
    home = number % len(box.servers)
    urls = box.urls[home:] + box.urls[:home]
    serial = 0
    while True:
        try:
            # Another name for each line: an operation of a broken one may still take effect.
            serial += 1
            async with open_client(urls, reconnect=False, request_timeout_s=20.0) as client:
                name = f"c{number}.{serial}@{client.server.node}"
                line = recording.Recorded(client, box.recorder, name, strict=False)
                await _write_on(line, number, serial, chance)
        except (errors.CannotConnect, errors.Disconnected, recording.LineGone):
            await anyio.sleep(0.1)


async def _write_on(
    line: recording.Recorded, number: int, serial: int, chance: random.Random
) -> None:
    count = 0
    while True:
        count += 1
        value = f"{number}.{serial}.{count}"
        own = f"own.c{number}.k{chance.randrange(OWN_KEYS)}"
        match chance.randrange(10):
            case 0:
                await line.delete(own)
            case 1 | 2:
                await line.write(f"shared.k{chance.randrange(SHARED_KEYS)}", value)
            case 3:
                await line.write(own, value, expect=line.known.get(own, 0))
            case _:
                await line.write(own, value)
        await anyio.sleep(PAUSE_S * chance.random() * 2)


async def settle(box: Box) -> None:
    """Wait until every server is in touch, and none has a write that waits."""
    with anyio.fail_after(SETTLE_S):
        for server in box.servers:
            async with open_client(server.url, wait=True) as client:
                while True:
                    facts = (await client.state())["engine"]
                    if facts["attached"] and not facts["outbox"]:
                        break
                    await anyio.sleep(0.1)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found in the end."""

    found: membership.Membership
    differences: int
    """Entries that not all servers have alike."""
    conflicts: int

    @property
    def is_fine(self) -> bool:
        return self.found.is_fine and not self.differences


async def look(box: Box) -> Verdict:
    """Compare what is there with what was answered, and the servers with each other."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_client(url)) for url in box.urls]
        differing = await comparing.differences(clients, Path())
        found = await _shown(clients[0])
        lost = [
            row.value.value
            async for row in clients[0].get_tree(conflicts.PLACE)
            if "value" in row.value
        ]
        operations = box.recorder.close()
        checked = membership.check(operations, found, lost)
        unexplained = [
            one
            for one in checked.pending_lost
            if not _is_replaced(one, operations) and not await _was_stored(clients[0], one)
        ]
    checked = dataclasses.replace(checked, pending_lost=tuple(unexplained))
    return Verdict(found=checked, differences=len(differing), conflicts=len(lost))


def _is_replaced(one: history.Operation, operations: Sequence[history.Operation]) -> bool:
    """Whether the same server took another write for that key afterwards: only the newest waits."""
    server = one.client.partition("@")[2]
    return any(
        other.key == one.key
        and other is not one
        and other.kind != "read"
        and other.outcome in ("ok", "pending", "unknown")
        and other.client.endswith(f"@{server}")
        and (other.end is None or other.end >= one.begin)
        for other in operations
    )


async def _was_stored(client: Client, one: history.Operation) -> bool:
    """Whether it came into the log, and was written over there."""
    records = await client.history(P(one.key), limit=HISTORY)
    return any("value" in record and record.value == one.value for record in records)


async def _shown(client: Client) -> dict[str, history.Value]:
    shown = {}
    for place in (P("own"), P("shared")):
        async for row in client.get_tree(place):
            shown[str(place + row.path)] = row.value
    return shown


async def run(folder: pathlib.Path, kills: int, node_kills: int, seed: int) -> int:
    chance = random.Random(seed)
    faults = ["server"] * kills + ["node"] * node_kills
    chance.shuffle(faults)
    async with box(folder) as running:
        async with anyio.create_task_group() as tasks:
            for number in range(CLIENTS * len(running.servers)):
                tasks.start_soon(write, running, number, random.Random(seed + number))
            began = time.monotonic()
            for done, kind in enumerate(faults, 1):
                await _kill(running, kind, chance)
                if done % 10 == 0 or done == len(faults):
                    running.writing_s = time.monotonic() - began
                    print(_progress(running, faults[:done]), flush=True)
            tasks.cancel_scope.cancel()
        began = time.monotonic()
        await settle(running)
        settled_s = time.monotonic() - began
        verdict = await look(running)
    print(
        f"{verdict.found}; {verdict.conflicts} conflicts; {verdict.differences} entries differ"
        f" among the servers; in order {settled_s:.1f} s after the last fault",
        flush=True,
    )
    for lost in [*verdict.found.lost[:10], *verdict.found.pending_lost[:10]]:
        print(f"  lost: {lost.key}: {lost}")
    for line in verdict.found.strangers[:10]:
        print(f"  wrong: {line}")
    return 0 if verdict.is_fine else 1


async def _kill(running: Box, kind: str, chance: random.Random) -> None:
    await anyio.sleep(chance.uniform(0.2, 1.0))
    if kind == "server":
        server = chance.choice(running.servers)
        await server.kill()
        await anyio.sleep(chance.uniform(0, 0.5))
        await server.start()
    else:
        node = chance.choice(running.nodes)
        node.kill()
        await anyio.sleep(chance.uniform(0, 2.0))
        await anyio.to_thread.run_sync(node.start)
        await anyio.to_thread.run_sync(nats.wait_for_all, running.nodes)


def _progress(running: Box, faults: Sequence[str]) -> str:
    outcomes = [operation.outcome for operation in running.recorder.operations]
    writes = len(outcomes)
    return (
        f"{faults.count('server')} kills of servers, {faults.count('node')} of NATS nodes:"
        f" {outcomes.count('ok')} writes answered, {outcomes.count('pending')} pending"
        f" ({writes / running.writing_s:.0f} a second), {outcomes.count('failed')} refused,"
        f" {outcomes.count('unknown')} unknown"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, default=100, help="so many kills of servers")
    parser.add_argument("--nodes", type=int, default=30, help="so many kills of NATS nodes")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options.servers, options.nodes, options.seed)


if __name__ == "__main__":
    sys.exit(main())
