"""Many breaks at odd moments: what the client knows afterwards is what the server has."""

from __future__ import annotations

import random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from moat_kv import ClientRoot, P, Path, Reset, WatchEvent, errors, open_client
from moat_kv.client import backoff
from moat_kv.testing.server import running_server
from tests.client.proxy import Proxy, proxied
from tests.client.waiting import until

pytestmark = pytest.mark.anyio

BREAKS = 12


class Writer:
    """Counts up entries, and knows of each what it may hold."""

    def __init__(self) -> None:
        self.possible: dict[Path, set[int]] = {}
        self.refused = self.unknown = self.done = 0

    async def run(self, client: Any, name: int) -> None:
        chance = random.Random(name)
        number = 0
        while True:
            number += 1
            path = Path("a", name, chance.randrange(10))
            before = self.possible.get(path, set())
            # A write that is cancelled at the end may have happened, too.
            self.possible[path] = before | {number}
            try:
                await client.set(path, number)
            except errors.Disconnected:
                self.refused += 1
                self.possible[path] = before
                await anyio.sleep(0.005)
            except errors.Unknown:
                self.unknown += 1
            else:
                self.done += 1
                self.possible[path] = {number}


async def break_lines(proxy: Proxy, client: Any) -> None:
    chance = random.Random(7)
    changes: list[bool] = []
    client.add_connection_listener(changes.append)
    for _ in range(BREAKS):
        await until(lambda: client.connected)
        await anyio.sleep(chance.random() * 0.12)
        if chance.random() < 0.3:
            proxy.hold_answers()
            await anyio.sleep(0.01)
        changes.clear()
        await proxy.cut()
        proxy.release_answers()
        # One that is mended already counts as well.
        await until(lambda: False in changes)


async def follow(client: Any, found: dict[Path, Any]) -> None:
    """What a user's program keeps from a watch."""
    async with client.watch(P("a"), fetch=True) as events:
        async for event in events:
            if isinstance(event, Reset):
                found.clear()
            elif isinstance(event, WatchEvent):
                found[event.path] = event.value


async def test_mirrors_and_watches_come_out_right_and_no_acknowledged_write_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "LONGEST_S", backoff.FIRST_S)
    writer = Writer()
    followed: dict[Path, Any] = {}
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(proxy.url) as client,
        open_client(running.url) as observer,
    ):
        root = await ClientRoot.as_handler(client, path=P("a"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow, client, followed)
            async with anyio.create_task_group() as writers:
                for name in range(4):
                    writers.start_soon(writer.run, client, name)
                await break_lines(proxy, client)
                writers.cancel_scope.cancel()
            # It follows in the log what the cancelled ones may have sent.
            await until(lambda: client.connected)
            await client.set(P("end"), 1)
            truth = {P("a") + row.path: row.value async for row in observer.get_tree(P("a"))}
            await until(lambda: followed == truth)
            await until(lambda: truth == {e.absolute: e.value for e in root.all_children if e.rev})
            tasks.cancel_scope.cancel()
    assert proxy.lines > BREAKS
    assert min(writer.done, writer.unknown) > 0
    for path, value in truth.items():
        assert value in writer.possible[path]


async def test_a_cancelled_caller_never_harms_the_line() -> None:
    chance = random.Random(5)
    async with running_server() as running, open_client(running.url) as client:
        await client.set(P("a"), "x" * 100_000)

        async def impatient() -> None:
            for _ in range(60):
                with anyio.move_on_after(chance.random() * 0.003):
                    if chance.random() < 0.5:
                        await client.set(P("a"), "y" * chance.randrange(200_000))
                    else:
                        assert (await client.get(P("a"))).rev > 0
                with anyio.move_on_after(chance.random() * 0.003):
                    async for _row in client.get_tree(P(":")):
                        await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(impatient)
        assert (await client.get(P("a"))).value
        assert len(running.server.connections) == 1
        (connection,) = running.server.connections
        await until(lambda: not connection._streams)
        assert not client.shared.link._streams
