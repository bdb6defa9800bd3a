"""What clients find after a server has been started again on the same log."""

from __future__ import annotations

import pathlib

import anyio
import pytest

from moat_kv.engine.memory import MemoryEngine
from moat_kv.engine.sqlite import SqliteEngine
from moat_kv.path import P
from moat_kv.testing.server import running_server
from tests.line import connected

pytestmark = pytest.mark.anyio


async def test_a_members_session_outlives_a_restart() -> None:
    engine = MemoryEngine()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        opened = (await line.ask("session_open")).fields
        id, secret = opened["session"], opened["secret"]
        await line.ask("group_join", group=P("g"), name="n", session=id)
        with anyio.fail_after(30):
            while running.server.store.tree.entries < 1:
                await anyio.sleep(0.01)
    async with running_server(engine=engine) as running, connected(running.url) as line:
        await line.ask("session_resume", session=id, secret=secret)
        await line.ask("group_join", group=P("g"), name="n", session=id)


async def test_a_session_that_has_outlived_a_restart_has_its_grace_again() -> None:
    engine = MemoryEngine()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        opened = (await line.ask("session_open", ttl_s=60, grace_s=0.3)).fields
        id, secret = opened["session"], opened["secret"]
        await line.ask("set", 1, path=P("a"), session=id)
    async with running_server(engine=engine) as running:
        await anyio.sleep(0.5)
        async with connected(running.url) as line:
            resumed = await line.ask("session_resume", session=id, secret=secret)
            assert resumed.fields == {"ttl_s": 60, "grace_s": 0.3}
        with anyio.fail_after(30):
            while len(running.server.sessions):
                await anyio.sleep(0.01)


async def test_who_has_seen_a_deletion_that_was_dropped_is_not_ahead(
    tmp_path: pathlib.Path,
) -> None:
    file = tmp_path / "log.sqlite"
    async with running_server(engine=SqliteEngine(file, tombstone_s=0)) as running:
        async with connected(running.url) as line:
            await line.ask("set", 1, path=P("a"))
            seen = (await line.ask("delete", path=P("a"))).fields["rev"]
        await running.server.engine.compact()
        epoch = running.server.engine.epoch
    async with running_server(engine=SqliteEngine(file)) as running:
        async with connected(running.url) as line:
            await line.ask("hello", seen=seen, epoch=epoch)
            assert (await line.ask("ping")).fields["revision"] == seen
            seq = await line.send("watch", path=P("a"), since=[epoch, seen])
            await line.next(seq)
            assert "reset" not in (await line.next(seq)).fields
