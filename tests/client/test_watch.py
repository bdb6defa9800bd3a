"""Watches: what they tell, in which order, and what waits for a slow reader."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from moat_kv import Mark, P, Path, Ready, Reset, WatchEvent, errors, open_client
from moat_kv.client import link, watch
from moat_kv.testing.server import running_server
from tests.client.proxy import proxied
from tests.client.waiting import both, take, until

pytestmark = pytest.mark.anyio


async def state(events: Any) -> list[Any]:
    """All events up to and with `Ready`."""
    found = await take(events)
    while not isinstance(found[-1], Ready):
        found += await take(events)
    return found


async def test_a_watch_tells_changes_with_absolute_paths() -> None:
    async with both() as (_, client), client.watch(P("a")) as events:
        await client.ping()
        await client.set(P("a"), 1)
        await client.set(P("x"), 1)
        await client.set(P("a.b"), {"t": 2})
        one, two = await take(events, 2)
        await client.delete(P("a"))
        (three,) = await take(events)
        assert isinstance(one, WatchEvent)
        assert (one.path, one.value, one.rev) == (P("a"), 1, 1)
        assert (two.path, two.value.t) == (P("a.b"), 2)
        assert (three.path, "value" in three, three.rev, three.chain) == (P("a"), False, 4, None)


async def test_a_fetch_tells_the_state_a_parent_first_and_then_that_it_is_complete() -> None:
    async with both() as (_, client):
        for text in ("a.b.c", "a", "a.b", "x"):
            await client.set(P(text), text)
        async with client.watch(P("a"), fetch=True) as events:
            found = await state(events)
            assert [str(one.path) for one in found[:-1]] == ["a", "a.b", "a.b.c"]
            await client.set(P("a.n"), 0)
            assert (await take(events))[0].path == P("a.n")
        async with client.watch(P("none"), fetch=True) as events:
            assert await state(events) == [Ready()]


async def test_depths_and_patterns_choose() -> None:
    async with both() as (_, client):
        for text in ("a", "a.b", "a.b.c", "a.x.c", "q.b.c"):
            await client.set(P(text), text)

        async def found(path: Path, **options: Any) -> list[str]:
            async with client.watch(path, fetch=True, **options) as events:
                return [one.value for one in (await state(events))[:-1]]

        assert await found(P("a"), max_depth=0) == ["a"]
        assert await found(P("a"), min_depth=1, max_depth=1) == ["a.b"]
        assert await found(P("a.+.c"), match=True) == ["a.b.c", "a.x.c"]
        assert await found(P("#.c"), match=True) == ["a.b.c", "a.x.c", "q.b.c"]


async def test_a_slow_reader_gets_the_newest_change_of_each_path_and_nothing_grows() -> None:
    async with both() as (_, client), client.watch(P("a"), marks=True) as events:
        await client.ping()
        for number in range(1, 3001):
            await client.set(Path("a", number % 7), number)
        await until(lambda: len(events._rows) == 7 and events._rows[P("a:4")][2] == 3000)
        assert len(events._queue) <= 2 * 7 + 1
        found = await take(events, 7)
        found = [one for one in found if isinstance(one, WatchEvent)]
        while len(found) < 7:
            found += [one for one in await take(events) if isinstance(one, WatchEvent)]
        assert sorted(one.value for one in found) == list(range(2994, 3001))
        while not (isinstance(events.since, Mark) and events.since.rev == 3000):
            await take(events)


async def test_a_path_that_always_changes_does_not_keep_another_from_its_turn() -> None:
    async with both() as (_, client), client.watch(P("a")) as events:
        await client.ping()
        await client.set(P("a.hot"), 0)
        await client.set(P("a.cold"), 0)
        for number in range(100):
            await client.set(P("a.hot"), number)
        await until(lambda: events._rows[P("a.hot")][2] == 102)
        assert [str(one.path) for one in await take(events, 2)] == ["a.hot", "a.cold"]


async def test_a_watch_is_resumed_from_the_last_mark_that_was_handed_out() -> None:
    async with both() as (_, client):
        async with client.watch(P("a"), marks=True) as events:
            assert (await take(events))[0] == Mark(rev=0, epoch=client.server.epoch)
            await client.set(P("a.seen"), 1)
            await client.set(P("a.gone"), 1)
            while events.since is None or events.since.rev < 2:
                await take(events)
            await client.set(P("a.unseen"), 1)
            await until(lambda: P("a.unseen") in events._rows)
            place = events.since
        await client.set(P("a.seen"), 2)
        await client.delete(P("a.gone"))
        async with client.watch(P("a"), since=place) as events:
            found = {str(one.path): one.get("value") for one in await take(events, 3)}
            assert found == {"a.unseen": 1, "a.seen": 2, "a.gone": None}
        async with client.watch(P("a"), since=(place.epoch, place.rev), fetch=True) as events:
            assert len(await state(events)) == 4


async def test_a_place_from_another_epoch_starts_anew() -> None:
    async with both() as (_, client):
        await client.set(P("a"), 1)
        async with client.watch(P("a"), since=("another", 5)) as events:
            reset, event, ready = await take(events, 3)
            assert (reset, ready) == (Reset(reason="another epoch"), Ready())
            assert event.value == 1


async def test_changes_during_a_break_are_told_after_it() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(proxy.url) as client,
        open_client(running.url) as other,
        client.watch(P("a"), fetch=True) as events,
    ):
        await client.set(P("a.x"), 1)
        await client.set(P("a.gone"), 1)
        await state(events)
        await proxy.cut(refuse=True)
        await until(lambda: not client.connected)
        for number in range(10):
            await other.set(P("a.x"), number)
        await other.delete(P("a.gone"))
        proxy.accept()
        found: dict[str, Any] = {}
        while len(found) < 2 or found.get("a.x") != 9 or found.get("a.gone"):
            (event,) = await take(events)
            assert isinstance(event, WatchEvent)
            found[str(event.path)] = event.get("value")
        assert found == {"a.x": 9, "a.gone": None}


async def test_a_watch_that_is_refused_raises_its_error() -> None:
    async with both() as (_, client):
        async with client.watch(Path(None, "x")) as events:
            with pytest.raises(errors.BadPath):
                await take(events)
        async with client.watch(P("a"), min_depth=-1) as events:
            with pytest.raises(errors.BadArguments):
                await take(events)


async def test_leaving_a_watch_stops_it_at_the_server() -> None:
    async with both() as (running, client):
        async with client.watch(P("a")) as events:
            await until(lambda: running.server.describe()["watchers"] == 1)
            with anyio.move_on_after(0.01):
                await take(events)
            await client.set(P("a"), 1)
            assert (await take(events))[0].value == 1
        await until(lambda: running.server.describe()["watchers"] == 0)
        with pytest.raises(StopAsyncIteration):
            await events.__anext__()


async def test_events_that_abound_leave_room_for_other_tasks() -> None:
    async with both() as (_, client):
        await client.batch([client.op_set(Path("a", n), n) for n in range(1000)])
        async with client.watch(P("a"), fetch=True) as events:
            await until(lambda: len(events._rows) == 1000)
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other)
                await state(events)
                tasks.cancel_scope.cancel()
            assert turns >= 10


async def test_a_batch_of_events_is_all_that_waits() -> None:
    async with both() as (_, client):
        await client.batch([client.op_set(Path("a", n), n) for n in range(10)])
        async with client.watch(P("a"), fetch=True) as events:
            await until(lambda: events._place is not None)
            assert len(await events.next_batch()) == 11


# The feed, without a line -----------------------------------------------------------------------


class Told(watch.Feed):
    """A feed that keeps what it is told."""

    def __init__(self, **options: Any) -> None:
        line: Any = link.Link(
            [], name="", connect_timeout_s=1, request_timeout_s=1, reconnect=False
        )
        line.server = type("Server", (), {"epoch": "e"})
        super().__init__(line, P("a"), **options)
        self.told: list[Any] = []

    def on_rows(self, rows: list[list[Any]]) -> None:
        self.told.append(len(rows))

    def on_mark(self, mark: Mark) -> None:
        self.told.append(mark.rev)

    def on_ready(self) -> None:
        self.told.append("ready")

    def on_reset(self, reason: str) -> None:
        self.told.append("reset")


ROW = [P("a"), b"\x01", 5, 1.0, "x"]


async def test_a_feed_without_a_state_resumes_from_where_it_began() -> None:
    feed = Told(fetch=False)
    assert feed.ask() == {"path": P("a")}
    feed.started({"rev": 7})
    assert feed.ask() == {"path": P("a"), "since": ["e", 7]}
    feed.item({"rows": [ROW]}, None)
    assert feed.ask()["since"] == ["e", 7]
    feed.item({"rows": [], "mark": 9}, None)
    assert feed.ask()["since"] == ["e", 9]
    feed.started({"rev": 12})
    feed.item({"rows": [ROW], "ready": True}, None)
    assert feed.ask()["since"] == ["e", 12]
    assert feed.told == [7, 1, 9, 1, 12]


async def test_a_feed_has_no_place_while_a_state_is_on_its_way() -> None:
    feed = Told(fetch=True)
    feed.started({"rev": 7})
    assert feed.ask() == {"path": P("a"), "fetch": True}
    feed.item({"rows": [ROW]}, None)
    assert feed.ask() == {"path": P("a"), "fetch": True}
    feed.started({"rev": 8})
    feed.item({"rows": [ROW], "ready": True, "mark": 10}, None)
    feed.item({"reset": "too much"}, None)
    assert feed.ask() == {"path": P("a"), "fetch": True}
    feed.item({"ready": True}, None)
    assert feed.told == [1, "reset", 1, 10, "ready", "reset", 8, "ready"]
