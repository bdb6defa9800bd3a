"""The ground of a trial: what is read comes from the server, and stays current; no way back."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv import Client, P, WatchEvent, errors, open_client
from moat_kv.engine.memory import MemoryEngine
from moat_kv.testing.server import running_server
from moat_kv_runner.trying import ground, happenings

pytestmark = pytest.mark.anyio

LIMIT_S = 30.0


@asynccontextmanager
async def trial(
    *, faked: Collection[str] = (), lets_through: bool = False
) -> AsyncIterator[tuple[Client, Client, list[happenings.Happening]]]:
    """A client of a server, a script's line to a ground before it, and what was told."""
    told: list[happenings.Happening] = []
    async with running_server() as server, open_client(server.url) as real:
        fakes = [P(path) for path in faked]
        running = ground.running_ground(real=real, faked=fakes, lets_through=lets_through)
        async with running as on, on.line(told.append) as line:
            yield real, line, told


async def value_of(client: Client, path: str, when: Callable[[Any], bool]) -> None:
    """Until an entry is so; None: there is none."""
    with anyio.fail_after(LIMIT_S):
        while not when((await client.get(P(path))).get("value")):
            await anyio.sleep(0.01)


async def test_entry_is_read_anew_until_it_is_written_here() -> None:
    async with trial() as (real, line, told):
        assert "value" not in await line.get(P("a"))
        await real.set(P("a"), 1)
        assert (await line.get(P("a"))).value == 1
        await real.delete(P("a"))
        assert "value" not in await line.get(P("a"))
        await line.set(P("a"), 2)
        await real.set(P("a"), 3)
        assert (await line.get(P("a"))).value == 2
        assert told == [happenings.Wrote(path=P("a"), value=2)]
        assert (await real.get(P("a"))).value == 3


async def test_watched_subtree_stays_current_but_for_what_was_written_here() -> None:
    async with trial(faked=["a.fake"]) as (real, line, _told):
        await real.set(P("a.x"), 1)
        await real.set(P("a.fake"), 1)
        seen: list[tuple[str, Any]] = []
        async with line.watch(P("a"), fetch=True) as watch:
            await real.set(P("a.y"), 2)
            await value_of(line, "a.y", lambda value: value == 2)
            await line.set(P("a.x"), 5)
            await real.set(P("a.x"), 6)
            await real.set(P("a.fake"), 6)
            await real.delete(P("a.y"))
            await value_of(line, "a.y", lambda value: value is None)
            await line.set(P("a.end"), 0)
            async for event in watch:
                if isinstance(event, WatchEvent):
                    seen.append((str(event.path), event.get("value")))
                    if event.path == P("a.end"):
                        break
        assert ("a.x", 5) in seen
        assert ("a.x", 6) not in seen
        assert "a.fake" not in dict(seen)
        assert dict(seen)["a.y"] is None
        assert "value" not in await real.get(P("a.end"))


@pytest.mark.parametrize("depth", [0, 1, -1])
async def test_only_as_much_is_brought_as_is_asked_for(depth: int) -> None:
    async with trial() as (real, line, _told):
        for path in ("a", "a.b", "a.b.c", "z"):
            await real.set(P(path), path)
        rows = [row.value async for row in line.get_tree(P("a"), max_depth=depth)]
        assert rows == ["a", "a.b", "a.b.c"][: depth + 1 or None]
        assert {each.name for each in await line.list(P("a"))} == {"b"}
        async with line.watch(P("+.b"), fetch=True, match=True) as watch:
            async for event in watch:
                assert isinstance(event, WatchEvent)
                assert event.value == "a.b"
                break


async def test_refused_write_leaves_what_is_on_the_server_in_sight() -> None:
    async with trial() as (real, line, told):
        await real.set(P("a"), 1)
        with pytest.raises(errors.Conflict):
            await line.set(P("a"), 2, expect=0)
        await real.set(P("a"), 3)
        assert (await line.get(P("a"))).value == 3
        assert told == []
        await line.delete_tree(P("a"))
        assert told == [happenings.Deleted(path=P("a"), tree=True)]
        assert (await real.get(P("a"))).value == 3


async def test_write_that_is_let_through_is_refused_as_the_server_has_it() -> None:
    async with trial(lets_through=True) as (real, line, told):
        await real.set(P("a"), 1)
        first = await line.get(P("a"))
        await real.set(P("a"), 2)
        with pytest.raises(errors.Conflict):
            await line.set(P("a"), 3, chain=first.chain)
        assert (await line.get(P("a"))).value == 2
        written = await line.set(P("a"), 4, chain=(await line.get(P("a"))).chain)
        assert (await real.get(P("a"))).value == 4
        await line.delete(P("a"), expect=written.rev)
        assert "value" not in await real.get(P("a"))
        with pytest.raises(errors.BadValue, match="cannot be let through"):
            await line.set(P("a"), 1, guard=(P("a"), 1))
        async with real.monitor(P("bell")) as monitor:
            # Until the server listens, nobody hears it.
            async with anyio.create_task_group() as tasks:

                async def ring() -> None:
                    while True:
                        await line.send(P("bell"), "ding")
                        await anyio.sleep(0.05)

                tasks.start_soon(ring)
                async for message in monitor:
                    assert message.value == "ding"
                    break
                tasks.cancel_scope.cancel()
        assert happenings.Sent(topic=P("bell"), value="ding") in told


async def test_what_went_while_the_server_was_away_goes_here_too(
    short_folder: pathlib.Path,
) -> None:
    socket = short_folder / "s"
    async with anyio.create_task_group() as tasks:

        async def serve(
            engine: MemoryEngine, *, task_status: anyio.abc.TaskStatus[anyio.CancelScope]
        ) -> None:
            with anyio.CancelScope() as scope:
                async with running_server(engine=engine, socket=socket):
                    task_status.started(scope)
                    await anyio.sleep_forever()

        first: anyio.CancelScope = await tasks.start(serve, MemoryEngine())
        async with open_client(f"unix://{socket}") as real:
            await real.set(P("a.x"), 1)
            await real.set(P("a.y"), 1)
            async with ground.running_ground(real=real) as on, on.line(lambda _: None) as line:
                assert [row.value async for row in line.get_tree(P("a"))] == [1, 1]
                first.cancel()
                # Another log, where one of the two is missing.
                socket.unlink(missing_ok=True)
                await tasks.start(serve, MemoryEngine())
                with anyio.fail_after(LIMIT_S):
                    while not real.connected or "value" not in await real.get(P("a.x")):
                        try:
                            await real.set(P("a.x"), 2)
                        except errors.MoatKvError:
                            await anyio.sleep(0.05)
                await value_of(line, "a.x", lambda value: value == 2)
                await value_of(line, "a.y", lambda value: value is None)
        tasks.cancel_scope.cancel()
