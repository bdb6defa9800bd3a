"""What ends with a time or a session goes, also when the disk was full, and leaves nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from moat_kv import codec, errors
from moat_kv.engine.base import Done
from moat_kv.engine.memory import MemoryEngine
from moat_kv.entry import Write
from moat_kv.path import P
from moat_kv.server import expiry
from moat_kv.testing.server import running_server
from tests.client.waiting import until
from tests.line import Line, connected
from tests.server.attacking import answers, requests

pytestmark = pytest.mark.anyio


async def test_an_entry_whose_time_is_over_goes_when_the_disk_has_room_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(expiry, "LOOK_S", 0.05)
    monkeypatch.setattr(expiry, "RETRY_S", 0.2)
    engine = MemoryEngine()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        await line.ask("set", 1, path=P("a"), ttl_s=1_000.0)
        engine.trouble = "no room"
        monkeypatch.setattr(engine, "now", lambda: time.time() + 2_000)
        # It was tried, in vain.
        await until(lambda: "tried again" in caplog.text)
        assert (await line.ask("get", path=P("a"))).value is not None
        engine.trouble = None
        await until(lambda: running.server.store.tree.entries == 0)


async def test_an_entry_that_is_renewed_all_the_time_costs_no_more_for_it() -> None:
    async with running_server() as running, connected(running.url) as line:
        for _ in range(3):
            sent = requests("set", 1_000, b"\x01", path=P("a"), ttl_s=1_000.0)
            await line.stream.send(sent)
            await answers(line, 1_000)
        assert len(running.server.expiry._due) < 1_500


async def test_a_sessions_entries_go_when_the_disk_has_room_again() -> None:
    class HalfFull(MemoryEngine):
        """Has no room for the deletion of an entry, but for that of a session's record."""

        full = False

        def submit(self, writes: Sequence[Write], done: Done) -> None:
            if self.full and writes[0].path == P("mine"):
                done(errors.StorageFailed("memory", "no room"))
            else:
                super().submit(writes, done)

    engine = HalfFull()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        id = (await line.ask("session_open")).fields["session"]
        await line.ask("set", 1, path=P("mine"), session=id)
        engine.full = True
        await line.ask("session_close", session=id)
        await until(lambda: running.server.sessions._unswept)
        engine.full = False
        await until(lambda: running.server.store.tree.entries == 0)


async def test_a_membership_goes_with_its_session_and_leaves_nothing() -> None:
    async with running_server() as running, connected(running.url) as line:
        id = (await line.ask("session_open")).fields["session"]
        for group in ("g", "h"):
            for role in ("x", "y"):
                await line.ask("group_join", group=P(group), name="n", role=role, session=id)
        await line.ask("group_leave", group=P("g"), name="n", role="x")
        await line.ask("session_close", session=id)
        assert not running.server.groups._groups
        assert not running.server.groups._joined


@asynccontextmanager
async def a_member(line: Line) -> AsyncIterator[dict[str, Any]]:
    yield {"session": (await line.ask("session_open")).fields["session"], "group": P("g")}


async def test_a_members_info_is_bounded_in_depth_and_size() -> None:
    deep: Any = 1
    for _ in range(codec.MAX_DEPTH):
        deep = [deep]
    async with running_server() as running, connected(running.url) as line:
        watch = await line.send("group_watch", group=P("g"))
        async with a_member(line) as member:
            with pytest.raises(errors.BadValue, match="deeper than 63"):
                await line.ask("group_join", deep, name="n", **member)
            await line.ask("group_join", deep[0], name="n", **member)
            with pytest.raises(errors.BadArguments, match="at most"):
                await line.ask("group_join", "x" * 20_000, name="m", **member)
            with pytest.raises(errors.BadArguments, match="role has 1 to 200"):
                await line.ask("group_join", 1, name="m", role="x" * 201, **member)
        while not (part := await line.next(watch)).fields.get("members"):
            pass
        assert codec.unpack(part.value or b"") == {"n": deep[0]}


async def test_a_group_stays_small_enough_for_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moat_kv.server.groups.GROUP_BYTES", 10_000)
    async with running_server() as running, connected(running.url) as line:
        async with a_member(line) as member:
            await line.ask("group_join", "x" * 9_000, name="m", **member)
            with pytest.raises(errors.BadArguments, match="too many members"):
                await line.ask("group_join", "x" * 9_000, name="n", **member)
            await line.ask("group_join", "y" * 9_500, name="m", **member)  # its own, changed


async def test_a_write_whose_sessions_record_has_no_room_does_not_say_that_it_ended() -> None:
    class NoRecord(MemoryEngine):
        def submit(self, writes: Sequence[Write], done: Done) -> None:
            if writes[0].path.keys[0] != "mine":
                done(errors.StorageFailed("memory", "no room"))
            else:
                super().submit(writes, done)

    async with running_server(engine=NoRecord()) as running, connected(running.url) as line:
        id = (await line.ask("session_open")).fields["session"]
        with pytest.raises(errors.StorageFailed):
            await line.ask("set", 1, path=P("mine"), session=id)
        await line.ask("session_ping", session=id)
