"""Watches over the wire: fetching, marks, resuming, falling behind."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from moat_kv import codec, errors
from moat_kv.path import P, Path
from moat_kv.proto.messages import Reply, State
from moat_kv.testing.server import running_server
from tests.line import Line, connected

pytestmark = pytest.mark.anyio


async def started(line: Line, **arguments: object) -> int:
    seq = await line.send("watch", **arguments)
    assert (await line.next(seq)).state == State.START
    return seq


async def until_ready(line: Line, seq: int) -> tuple[list[list[Any]], Reply]:
    """The rows of the fetch, and the part that ends it."""
    rows: list[list[Any]] = []
    while True:
        part = await line.next(seq)
        rows.extend(part.fields.get("rows", ()))
        if part.fields.get("ready"):
            return rows, part


async def test_changes_come_in_order_with_a_mark() -> None:
    async with running_server() as running, connected(running.url) as line:
        seq = await started(line, path=P("a"))
        await line.ask("set", 1, path=P("a.b"))
        part = await line.next(seq)
        assert [(str(row[0]), codec.unpack(row[1])) for row in part.fields["rows"]] == [("a.b", 1)]
        assert part.fields["mark"] == 1
        await line.ask("delete", path=P("a.b"))
        part = await line.next(seq)
        assert part.fields["rows"][0][1] is None


async def test_fetch_tells_the_present_state_and_then_ready() -> None:
    async with running_server() as running, connected(running.url) as line:
        for start in (0, 500, 1_000):
            writes = [[Path("a", start + n), codec.pack(n), {}] for n in range(500)]
            await line.ask("batch", writes=writes)
        await line.ask("set", 1, path=P("b"))
        seq = await started(line, path=P("a"), fetch=True)
        rows, last = await until_ready(line, seq)
        assert [row[0] for row in rows] == [Path("a", n) for n in range(1_500)]
        assert last.fields["mark"] == 1_501


async def test_a_fetch_never_tells_an_older_state_after_a_newer_one() -> None:
    async with running_server() as running:
        async with connected(running.url) as line, connected(running.url) as writer:
            one = codec.pack(0)
            for start in range(5):
                writes = [[Path("a", start, n), one, {}] for n in range(1_000)]
                await writer.ask("batch", writes=writes)
            seq = await started(line, path=P("a"), fetch=True)
            for n in range(400):
                await writer.send("set", n, path=Path("a", n % 5, n))
            await writer.ask("ping")
            seen: dict[Any, int] = {}
            latest = (await writer.ask("ping")).fields["revision"]
            mark = 0
            while mark < latest:
                part = await line.next(seq)
                for path, _value, rev, *_ in part.fields.get("rows", ()):
                    assert seen.get(path, 0) < rev
                    seen[path] = rev
                mark = part.fields.get("mark", mark)
            assert len(seen) == 5_000


async def test_a_watch_resumes_from_its_mark_with_deletions() -> None:
    async with running_server() as running:
        epoch = running.server.engine.epoch
        async with connected(running.url) as line:
            seq = await started(line, path=P("a"))
            await line.ask("set", 1, path=P("a.b"))
            await line.ask("set", 1, path=P("a.c"))
            mark = 0
            while mark < 2:
                mark = (await line.next(seq)).fields.get("mark", 0)
        async with connected(running.url) as line:
            await line.ask("set", 2, path=P("a.d"))
            await line.ask("delete", path=P("a.b"))
            await line.ask("set", 2, path=P("other"))
            seq = await started(line, path=P("a"), since=[epoch, mark])
            rows, _last = await until_ready(line, seq)
            assert sorted((str(row[0]), row[1] is None) for row in rows) == [
                ("a.b", True),
                ("a.d", False),
            ]


@pytest.mark.parametrize("case", ["epoch", "floor"])
async def test_who_cannot_resume_is_reset_and_told_everything(case: str) -> None:
    async with running_server() as running, connected(running.url) as line:
        epoch = running.server.engine.epoch
        await line.ask("set", 1, path=P("a"))
        await line.ask("delete", path=P("a"))
        await line.ask("set", 1, path=P("b"))
        if case == "floor":
            running.server.store.compacted(2)
        since = [epoch, 1] if case == "floor" else ["another", 3]
        seq = await started(line, path=P(":"), since=since)
        assert (await line.next(seq)).fields["reset"]
        rows, _last = await until_ready(line, seq)
        assert [str(row[0]) for row in rows] == ["b"]


async def test_resuming_from_the_future_says_behind() -> None:
    async with running_server() as running, connected(running.url) as line:
        seq = await line.send("watch", path=P(":"), since=[running.server.engine.epoch, 5])
        assert (await line.next(seq)).fields["error"] == "Behind"


async def test_a_pattern_fetches_and_watches_what_matches() -> None:
    async with running_server() as running, connected(running.url) as line:
        await line.ask("set", 1, path=P("a.x.temp"))
        await line.ask("set", 1, path=P("a.x.hum"))
        seq = await started(line, path=P("a.+.temp"), match=True, fetch=True)
        rows, _last = await until_ready(line, seq)
        assert [str(row[0]) for row in rows] == ["a.x.temp"]
        await line.ask("set", 2, path=P("a.y.hum"))
        await line.ask("set", 2, path=P("a.y.temp"))
        part = await line.next(seq)
        assert [str(row[0]) for row in part.fields["rows"]] == ["a.y.temp"]


async def test_a_stopped_watch_ends_and_costs_nothing() -> None:
    async with running_server() as running, connected(running.url) as line:
        seq = await started(line, path=P("a"))
        await line.ask("stop", seq=seq)
        assert (await line.next(seq)).state == State.END
        assert running.server.store.watchers.count == 0
        await line.ask("stop", seq=seq)


async def test_a_lost_line_takes_its_watches_with_it() -> None:
    async with running_server() as running:
        async with connected(running.url) as line:
            await started(line, path=P("a"))
            assert running.server.store.watchers.count == 1
        with anyio.fail_after(30):
            while running.server.store.watchers.count:
                await anyio.sleep(0.01)


async def test_a_stalled_watcher_gets_the_newest_and_delays_nobody() -> None:
    async with running_server() as running:
        async with connected(running.url) as stalled, connected(running.url) as writer:
            await started(stalled, path=P("a"))
            seq = await started(writer, path=P("a"))
            text = "x" * 10_000
            for n in range(3_000):
                await writer.ask("set", [n, text], path=Path("a", n % 10))
                part = await writer.next(seq)
                assert part.fields["rows"][0][2] == n + 1
            (watcher,) = (
                watcher
                for watcher in running.server.store.watchers._root.branches["a"].watchers
                if watcher.pending
            )
            assert len(watcher.pending) <= 10
            newest: dict[object, int] = {}
            while sum(newest.values()) < sum(range(2_990, 3_000)):
                for part in [await stalled.next(1)]:
                    for path, value, *_ in part.fields.get("rows", ()):
                        newest[path] = codec.unpack(value)[0]


async def test_a_watcher_that_is_too_far_behind_starts_anew() -> None:
    async with running_server() as running, connected(running.url) as line:
        seq = await started(line, path=P("a"))
        (watcher,) = running.server.store.watchers._root.branches["a"].watchers
        watcher.limit = 10
        writes = [[Path("a", n), codec.pack(n), {}] for n in range(100)]
        await line.ask("batch", writes=writes)
        assert (await line.next(seq)).fields["reset"] == "too many changes waited"
        rows, _last = await until_ready(line, seq)
        assert len(rows) == 100


async def test_messages_reach_monitors_of_their_topic_and_are_not_stored() -> None:
    async with running_server() as running, connected(running.url) as line:
        seq = await line.send("monitor", topic=P("t"))
        assert (await line.next(seq)).state == State.START
        await line.ask("send", "elsewhere", topic=P("u"))
        await line.ask("send", "hello", topic=P("t.x"))
        part = await line.next(seq)
        assert part.fields == {"topic": P("t.x")}
        assert part.value == codec.pack("hello")
        assert (await line.ask("ping")).fields["revision"] == 0
        with pytest.raises(errors.BadArguments):
            await line.ask("send", topic=P("t"))
