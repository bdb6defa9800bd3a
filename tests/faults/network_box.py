"""Three NATS nodes, three servers, and links that can be broken: what network faults happen to.

Fault commands start it (`box`), do something bad to it, and ask in the end whether all is in order
(`settle`) and whether what is there is what was answered (`look`). Nothing here causes a fault.

The environment's FAULT_LOGS names a folder where all logs are kept; else they go with the box.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from moat_kv import Client, P, conflicts, errors, open_client
from moat_kv.client import comparing
from moat_kv.path import Path
from moat_kv.testing.cluster import Cluster
from tests.faults import history, membership

_T = TypeVar("_T")

#: All has to be in order again so soon after the last fault, in seconds.
SETTLE_S = 60.0
#: A server that says nothing of itself for so long is taken as away, in seconds.
ANSWER_S = 5.0
#: So many records of a path are kept: for shared keys, to see what was written over.
HISTORY = 1_000
SETTINGS = {"server": {"nats": {"history": HISTORY}}}
_LOOK_S = 0.1


@dataclass(kw_only=True)
class Box:
    """What is running."""

    cluster: Cluster
    servers: tuple[str, ...]
    nodes: tuple[str, ...]
    urls: tuple[str, ...]
    recorder: history.Recorder = field(default_factory=history.Recorder)

    def url(self, server: str) -> str:
        return self.urls[self.servers.index(server)]

    async def do(self, call: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
        """One of the cluster's calls, which block, in a thread."""
        return await anyio.to_thread.run_sync(lambda: call(*arguments, **options))

    async def restart(self, name: str, pause_s: float) -> None:
        """kill -9, and start it again after a while."""
        await self.do(self.cluster.kill, name)
        await anyio.sleep(pause_s)
        await self.do(self.cluster.start, name)

    async def facts(self, server: str) -> dict[str, Any]:
        """What a server says of its engine; nothing if it does not answer."""
        with anyio.move_on_after(ANSWER_S), contextlib.suppress(errors.MoatKvError):
            async with open_client(self.url(server)) as client:
                facts: dict[str, Any] = (await client.state())["engine"]
                return facts
        return {}

    def cut_offs(self) -> dict[str, int]:
        """How often each server has said in its log that it was cut off."""
        words = "cut off from the network: "
        return {
            name: self.cluster.log(name).read_text(errors="replace").count(words)
            for name in self.servers
        }


@contextlib.asynccontextmanager
async def box(
    folder: pathlib.Path, *, environment: Mapping[str, Mapping[str, str]] | None = None
) -> AsyncIterator[Box]:
    """A network of three, until the context ends.

    `environment`: of single servers, see `Cluster`.
    """
    cluster = Cluster(folder / "box", environment=environment)
    await anyio.to_thread.run_sync(lambda: cluster.up(nodes=3, servers=3, settings=SETTINGS))
    try:
        yield of(cluster)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_keep_logs, cluster)
            await anyio.to_thread.run_sync(cluster.down)


def of(cluster: Cluster) -> Box:
    """A cluster that is up, with `SETTINGS`. (From now on nobody reads which writes have lost.)"""
    logging.getLogger("moat_kv.client").setLevel(logging.ERROR)
    return Box(cluster=cluster, servers=cluster.servers, nodes=cluster.nodes, urls=cluster.urls)


def _keep_logs(cluster: Cluster) -> None:
    place = os.environ.get("FAULT_LOGS")
    if place:
        folder = pathlib.Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*cluster.servers, *cluster.nodes):
            shutil.copy(cluster.log(name), folder / f"{name}.log")


async def cleared(box: Box, places: Sequence[str]) -> Box:
    """The same network with nothing at these paths, and a recorder that knows of nothing."""
    async with open_client(box.urls[0], wait=True) as client:
        for place in places:
            await agreed(lambda place=place: client.delete_tree(P(place)))  # type: ignore[misc]
    return dataclasses.replace(box, recorder=history.Recorder())


async def agreed(call: Callable[[], Awaitable[_T]], limit_s: float = SETTLE_S) -> _T:
    """What a call gives that takes the network's agreement, and may be made more than once.

    After a heal NATS may lose its leader again for some seconds, though all were in touch already.
    Raises Detached, Unknown when the time is over.
    """
    give_up_at = time.monotonic() + limit_s
    while True:
        try:
            return await call()
        except (errors.Detached, errors.Unknown):
            if time.monotonic() > give_up_at:
                raise
        await anyio.sleep(_LOOK_S)


async def until_attached(box: Box, wanted: dict[str, bool], limit_s: float) -> float:
    """Wait until these servers say that they are in touch, or not; how long it took, in seconds.

    Raises TimeoutError.
    """
    began = time.monotonic()
    with anyio.fail_after(limit_s):
        for server, attached in wanted.items():
            while (await box.facts(server)).get("attached") is not attached:
                await anyio.sleep(_LOOK_S)
    return time.monotonic() - began


async def until_seen(box: Box, values: Mapping[str, history.Value], limit_s: float) -> None:
    """Wait until every server shows these values of keys, as stored. Raises TimeoutError."""
    with anyio.fail_after(limit_s):
        async with clients_of(box) as clients:
            for client in clients:
                for key, value in values.items():
                    while not await _shows(client, key, value):
                        await anyio.sleep(_LOOK_S)


async def _shows(client: Client, key: str, value: history.Value) -> bool:
    found = await client.get(P(key))
    return found.get("value") == value and not found.pending


async def until_whole(box: Box, limit_s: float) -> None:
    """Wait until all NATS nodes have all of the stream again; for so long at most.

    Before that, another fault would not be the only one.
    """
    with anyio.move_on_after(limit_s):
        while not await box.do(box.cluster.has_whole_copies):
            await anyio.sleep(_LOOK_S)


async def settle(box: Box, limit_s: float = SETTLE_S) -> float:
    """Wait until every server is in touch, none has a write that waits, and all trees are equal.

    Nobody writes meanwhile: on a slow machine some write always waits.

    Returns how long that took, in seconds; all of `limit_s` and more if it did not come to it.
    """
    began = time.monotonic()
    with anyio.move_on_after(limit_s):
        for server in box.servers:
            while True:
                facts = await box.facts(server)
                if facts.get("attached") and not facts["outbox"]:
                    break
                await anyio.sleep(_LOOK_S)
        async with clients_of(box) as clients:
            while await _differ(clients):
                await anyio.sleep(_LOOK_S)
        return time.monotonic() - began
    return time.monotonic() - began


async def _differ(clients: Sequence[Client]) -> bool:
    try:
        return bool(await comparing.differences(clients, Path(), limit=1))
    except errors.Behind:
        return True


@contextlib.asynccontextmanager
async def clients_of(box: Box) -> AsyncIterator[list[Client]]:
    """One client at each server, in order."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_client(url, wait=True)) for url in box.urls]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found in the end."""

    found: membership.Membership
    differences: tuple[Path, ...]
    """Entries that not all servers have alike."""
    conflicts: int

    @property
    def is_fine(self) -> bool:
        return self.found.is_fine and not self.differences

    def __str__(self) -> str:
        return (
            f"{self.found}; {self.conflicts} conflicts; {len(self.differences)} entries differ"
            " among the servers"
        )

    def details(self) -> list[str]:
        """A line for each of the first things that are wrong."""
        lost = [*self.found.lost[:10], *self.found.pending_lost[:10]]
        lines = [f"  lost: {one.key}: {one}" for one in lost]
        lines += [f"  wrong: {line}" for line in self.found.strangers[:10]]
        return lines + [f"  differs: {path}" for path in self.differences[:10]]


async def look(box: Box, places: Sequence[str]) -> Verdict:
    """Compare what is there with what was answered, and the servers with each other.

    `places`: below these paths are all keys that the recorder knows. It is closed by this.
    """
    async with clients_of(box) as clients:
        differing = await comparing.differences(clients, Path())
        found = await shown(clients[0], places)
        lost = await conflicting_values(clients[0])
        deletions = await _conflicting_deletions(clients[0])
        operations = box.recorder.close()
        checked = membership.check(operations, found, lost)
        unexplained = [
            one
            for one in checked.pending_lost
            if not (one.kind == "delete" and one.key in deletions)
            and not _is_replaced(one, operations)
            and not await _was_stored(clients[0], one)
        ]
    return Verdict(
        found=dataclasses.replace(checked, pending_lost=tuple(unexplained)),
        differences=tuple(one.path for one in differing),
        conflicts=len(lost),
    )


async def conflicting_values(client: Client) -> list[history.Value]:
    """The values that have lost, of all conflicts."""
    rows = [row async for row in client.get_tree(conflicts.PLACE)]
    return [row.value.value for row in rows if "value" in row.value]


async def _conflicting_deletions(client: Client) -> set[str]:
    """The paths of which some deletion has lost."""
    rows = [row async for row in client.get_tree(conflicts.PLACE)]
    return {str(row.value.path) for row in rows if "value" not in row.value}


async def shown(client: Client, places: Sequence[str]) -> dict[str, history.Value]:
    """What is there now, by the texts of paths."""
    found = {}
    for place in map(P, places):
        async for row in client.get_tree(place):
            found[str(place + row.path)] = row.value
    return found


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
    records = await agreed(lambda: client.history(P(one.key), limit=HISTORY))
    return any("value" in record and record.value == one.value for record in records)


def pick_side(box: Box, chance: random.Random) -> tuple[str, str]:
    """A server and the NATS node of the same number: one place of three."""
    index = chance.randrange(len(box.servers))
    return box.servers[index], box.nodes[index]
