"""Updates: merged while others hold the resource, executed by the last, and once."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest

from moat_kv import P, errors, open_client
from moat_kv.coord import aio, ending, resource, stock, unsettled, watching
from moat_kv.testing.server import running_server
from tests.client.proxy import proxied
from tests.client.waiting import until
from tests.coord import widgets
from tests.coord.test_locks import two
from tests.coord.widgets import Clicks, FreeClicks

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def fresh() -> None:
    widgets.DONE.clear()
    widgets.FAIL.clear()


async def at(process: aio.Process, name: str = "test.test.w") -> stock.Stock:
    return await stock.read(process.client, process.path_of(name))


async def nothing_left(process: aio.Process, name: str = "test.test.w") -> None:
    found = process.client.get_tree(process.path_of(name))
    assert [str(row.path) async for row in found] == []


async def eventually_total(count: int, name: str = "w") -> None:
    with anyio.fail_after(30):
        while widgets.total(name) < count:
            await anyio.sleep(0.01)
    assert widgets.total(name) == count


@pytest.mark.parametrize("kind", [Clicks, FreeClicks])
async def test_the_last_to_end_executes_what_all_have_merged(kind: type[Clicks]) -> None:
    async with two() as (_, one, other), aio.Process(one.client) as third:
        updates = [kind(each, "w", doc={"clicks": n}) for n, each in enumerate((one, other, third))]
        caches = [aio.LruCache[Any]() for _ in updates]
        for cache, update in zip(caches, updates, strict=True):
            assert await cache.set("w", update) is True
        assert await caches[0].set("w", kind(one, "w", doc={"clicks": 10, "seen": 1})) is False
        await caches[0].expire("w")
        assert widgets.DONE == []
        found = await at(one)
        assert (len(found.references), [part.state["doc"] for part in found.parts]) == (
            2,
            [{"clicks": 10, "seen": 1}],
        )
        assert not await updates[1].end_session()
        assert not await updates[1].end_session()
        assert widgets.DONE == []
        assert await updates[2].end_session()
        ((name, doc, id_),) = widgets.DONE
        assert (name, doc) == ("w", {"clicks": 13, "seen": 1})
        assert updates[2].execution_id == id_
        await nothing_left(one)


async def test_alone_it_is_executed_at_once() -> None:
    async with two() as (_, one, _other):
        update = Clicks(one, "w", doc={"clicks": 1})
        assert update.resource_id == "test.test.w"
        assert await update.end_session(block=False)
        assert widgets.total() == 1
        assert not await update.end_session()
        with pytest.raises(RuntimeError, match="is over"):
            await update.refresh(Clicks(one, "w", doc={"clicks": 1}))


async def test_one_whose_time_is_up_does_not_wait_for_others() -> None:
    async with two() as (_, one, other):
        theirs = Clicks(other, "w", doc={"clicks": 1})
        await theirs.cache()
        for number in range(2):
            hard, soft = ((0, 10), (10, 0))[number]
            update = Clicks(one, "w", doc={"clicks": 1}, hard_session=hard, soft_session=soft)
            assert update.is_expired()
            assert await update.end_session()
            assert widgets.total() == number + 1
        update = Clicks(one, "w", doc={"clicks": 1})
        assert not update.is_expired()
        update.force_expiry()
        assert await update.end_session()
        # What they have kept is theirs still.
        assert widgets.total() == 3
        assert await theirs.end_session()
        assert widgets.total() == 4


async def test_refreshing_prolongs_the_soft_session_but_not_the_hard_one() -> None:
    async with two() as (_, one, _other):
        update = Clicks(one, "w", doc={}, soft_session=0.2, hard_session=100)
        hard = Clicks(one, "w", doc={}, soft_session=100, hard_session=0.2)
        for _ in range(10):
            await anyio.sleep(0.05)
            await update.refresh(Clicks(one, "w", doc={"clicks": 1}))
            await hard.refresh(Clicks(one, "w", doc={"clicks": 1}))
        assert not update.is_expired()
        assert hard.is_expired()


class Own(aio.Update):
    """With attributes of its own, in the two ways of clearing them."""

    def __init__(self, *args: Any, foo: int = 0, **kwargs: Any) -> None:
        self.foo = foo
        super().__init__(*args, **kwargs)

    def state(self) -> dict[str, Any]:
        return {"foo": self.foo}

    def clear(self) -> dict[str, Any]:
        return {"foo": 0}

    def merge(self, other: Own) -> None:
        self.foo += other.foo

    def execute(self) -> None:
        widgets.DONE.append((self._id, {"foo": self.foo}, str(self.execution_id)))


class Widget:
    """Stands for a class of a database."""


async def test_own_attributes_go_with_the_state() -> None:
    async with two() as (_, one, other):
        options: dict[str, Any] = {"database": Widget, "collection": Widget}
        mine, theirs = Own(one, 7, foo=1, **options), Own(other, 7, foo=2, **options)
        assert mine.resource_id == "Widget.Widget.7"
        await theirs.cache()
        assert not await mine.end_session()
        assert await theirs.end_session()
        assert [doc for _, doc, _ in widgets.DONE] == [{"foo": 3}]


async def test_an_update_that_says_nothing_is_told_what_is_missing() -> None:
    async with two() as (_, one, _other):
        update = aio.Update(one, "w")
        assert (update.spec, update.doc, update.state(), update.clear()) == ({}, {}, {}, None)
        with pytest.raises(NotImplementedError, match="how two are merged"):
            await update.refresh(aio.Update(one, "w"))
        with pytest.raises(NotImplementedError, match="what is executed"):
            await update.end_session()


async def test_many_that_wait_are_merged_into_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moat_kv.coord.ending.CROWD", 3)
    async with two() as (_, one, other):
        keeper = Clicks(other, "w", doc={"clicks": 100})
        await keeper.cache()
        for _ in range(7):
            assert not await Clicks(one, "w", doc={"clicks": 1}).end_session()
        found = await at(one)
        assert len(found.ended()) <= 3
        assert sum(part.state["doc"]["clicks"] for part in found.ended()) == 7
        assert await keeper.end_session()
        assert widgets.total() == 107
        await nothing_left(one)


# What fails is kept -----------------------------------------------------------------------------


async def test_what_execute_fails_on_is_tried_again_with_the_same_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unsettled, "FIRST_S", 0.05)
    widgets.FAIL["w"] = 3
    async with two() as (_, one, other):
        cache = aio.LruCache[Clicks]()
        update = Clicks(one, "w", doc={"clicks": 1})
        await cache.set("w", update)
        await cache.expire_all()
        assert cache.get_last_failed() is update
        (todo,) = (await at(one)).todos
        assert (todo.state["doc"], todo.process) == ({"clicks": 1}, one.id)
        assert todo.reason in (None, "OSError: the database is away")
        # What comes meanwhile is not mixed into it.
        await cache.set("w", Clicks(one, "w", doc={"clicks": 10}))
        await eventually_total(1)
        assert widgets.DONE[0][2] == todo.key
        await cache.expire_all()
        assert widgets.total() == 11
        await until(lambda: not len(one.unsettled))
        await nothing_left(other)


async def test_an_end_that_failed_can_be_asked_for_again() -> None:
    widgets.FAIL["w"] = 1
    async with two() as (_, one, _other):
        update = Clicks(one, "w", doc={"clicks": 1})
        with pytest.raises(OSError, match="away"):
            await update.end_session()
        assert await update.end_session()
        assert widgets.total() == 1


async def test_what_others_have_executed_meanwhile_is_not_executed_again() -> None:
    widgets.FAIL["w"] = 1
    async with two() as (_, one, other):
        update = Clicks(one, "w", doc={"clicks": 1})
        with pytest.raises(OSError, match="away"):
            await update.end_session()
        (todo,) = (await at(one)).todos
        await other.client.delete(other.path_of("test.test.w") / resource.TODO / todo.key)
        assert not await update.end_session()
        assert widgets.total() == 0


async def test_one_whose_resource_is_locked_goes_on_or_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unsettled, "FIRST_S", 0.05)
    async with two() as (_, one, other):
        async with other.lock("test.test.w"):
            update = Clicks(one, "w", doc={"clicks": 1}, block=False)
            with pytest.raises(errors.AlreadyLocked):
                await update.end_session()
            cache = aio.LruCache[Clicks]()
            await cache.set("w", update)
            await cache.expire_oldest()
            assert cache.get_last_failed() is update
            assert len(one.unsettled) == 1
        await eventually_total(1)


async def test_a_failed_merge_leaves_all_as_it_was() -> None:
    class Broken(Clicks):
        kind = "Broken"
        broken = True

        def merge(self, other: Clicks) -> None:
            super().merge(other)
            if self.broken:
                raise LookupError("merge")

    async with two() as (_, one, other):
        theirs = Broken(other, "w", doc={"clicks": 2})
        mine = Broken(one, "w", doc={"clicks": 1})
        await theirs.cache()
        assert not await mine.end_session()
        with pytest.raises(LookupError):
            await theirs.end_session()
        assert theirs.doc == {"clicks": 2}
        Broken.broken = False
        assert await theirs.end_session()
        assert widgets.total() == 3


# Processes that die -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Clicks, FreeClicks])
async def test_what_a_dead_process_had_kept_is_taken_over_by_a_live_one(
    kind: type[Clicks],
) -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        aio.Process(proxy.url, grace_s=0.5) as one,
        aio.Process(running.url) as other,
    ):
        cache = aio.LruCache[Any]()
        for _ in range(3):
            await cache.set("w", kind(one, "w", doc={"clicks": 1}, init_cache=True))
        assert [part.state["doc"] for part in (await at(other)).parts] == [{"clicks": 3}]
        # The other one has to know how to execute that kind.
        await kind(other, "x", doc={"clicks": 1}).end_session()
        old = one.session
        await proxy.cut(refuse=True)
        await eventually_total(3)
        proxy.accept()
        await until(lambda: one.session is not old)
        # The first one was not dead: it goes on without what was taken over.
        await cache.set("w", kind(one, "w", doc={"clicks": 10}, init_cache=True))
        await cache.expire_all()
        assert widgets.total() == 13
        await nothing_left(other)


async def test_what_was_taken_over_is_not_executed_again_at_the_end() -> None:
    async with two() as (_, one, other):
        update = Clicks(one, "w", doc={"clicks": 1})
        await update.cache()
        await other.client.delete_tree(other.path_of("test.test.w") / resource.KEPT)
        assert await update.end_session()
        assert widgets.total() == 0
        keeper = Clicks(other, "v", doc={})
        await keeper.cache()
        update = Clicks(one, "v", doc={"clicks": 1})
        await update.cache()
        (mine,) = [p for p in (await at(one, "test.test.v")).parts if p.state["doc"]]
        await other.client.delete(other.path_of("test.test.v") / resource.KEPT / mine.key)
        assert not await update.end_session()
        assert await keeper.end_session()
        assert widgets.total("v") == 0


async def test_what_another_process_left_before_is_found_at_the_start() -> None:
    async with running_server() as running, open_client(running.url) as client:
        async with aio.Process(client) as one:
            for name in ("w", "x", "y"):
                update = Clicks(one, name, doc={"clicks": 1})
                await update.cache()
        widgets.FAIL["x"] = 1
        async with aio.Process(client) as other:
            assert await Clicks(other, "z", doc={"clicks": 1}).end_session()
            await eventually_total(1)
            await eventually_total(1, "y")
            await until(lambda: len(other.unsettled) == 1)
        # It has failed once, and is left to the next process.
        async with aio.Process(client) as third:
            assert await Clicks(third, "z", doc={"clicks": 1}).end_session()
            await eventually_total(1, "x")


async def test_what_nobody_knows_how_to_execute_stays() -> None:
    async with two() as (_, one, other):
        await Clicks(one, "w", doc={"clicks": 1}).cache()
        await other.client.delete_tree(other.path_of("test.test.w") / resource.REFERENCES)
        await Own(other, 1, foo=1).end_session()
        async with other.lock("other"):
            pass
        assert len((await at(other)).orphaned({other.id})[1]) == 1


# Caches -----------------------------------------------------------------------------------------


async def test_a_cache_merges_what_comes_and_ends_what_goes() -> None:
    async with two() as (_, one, _other):
        cache = aio.LruCache[Clicks](max_entries=2)
        updates = {name: Clicks(one, name, doc={"clicks": 1}) for name in "abc"}
        assert [await cache.set(name, updates[name]) for name in "ab"] == [True, True]
        assert await cache.set("a", updates["a"]) is False
        assert await cache.get("a") is updates["a"]
        assert list(cache) == ["b", "a"]
        assert await cache.set("c", updates["c"]) is True
        assert (widgets.total("b"), cache.size(), len(cache)) == (1, 2, 2)
        assert "a" in cache
        for call in (cache.get, cache.expire):
            with pytest.raises(KeyError):
                await call("b")
        await cache.expire_oldest()
        assert widgets.total("a") == 1
        await cache.expire_all()
        await cache.expire_oldest()
        assert (widgets.total("c"), cache.size()) == (1, 0)
        assert cache.get_last_failed() is None
        with pytest.raises(ValueError, match="at least one entry"):
            aio.LruCache(max_entries=0)


async def test_what_is_expired_is_ended_when_it_is_touched_or_purged() -> None:
    async with two() as (_, one, other):
        keeper = Clicks(other, "w", doc={})
        await keeper.cache()
        cache = aio.LruCache[Clicks]()
        for result in (True, None):
            update = Clicks(one, "w", doc={"clicks": 1}, hard_session=0)
            assert await cache.set("w", update) is result
        assert widgets.total() == 2
        await cache.set("w", Clicks(one, "w", doc={"clicks": 1}, hard_session=0))
        assert await cache.get("w") is None
        assert (widgets.total(), cache.size()) == (3, 0)
        await cache.set("w", Clicks(one, "w", doc={"clicks": 1}, hard_session=0))
        await cache.set("x", Clicks(one, "x", doc={"clicks": 1}))
        await cache.purge()
        assert (widgets.total(), cache.size()) == (4, 1)


async def test_one_that_is_ended_while_it_is_refreshed_makes_room_for_a_new_one() -> None:
    async with two() as (_, one, _other):
        cache = aio.LruCache[Clicks]()
        update = Clicks(one, "w", doc={"clicks": 1})
        await cache.set("w", update)
        await update.end_session()
        assert await cache.set("w", Clicks(one, "w", doc={"clicks": 1})) is True
        await cache.expire_all()
        assert widgets.total() == 2


async def test_ending_in_the_background_is_waited_for_at_the_end() -> None:
    async with running_server() as running, open_client(running.url) as client:
        async with aio.Process(client) as one:
            cache = aio.LruCache[Clicks](background=True)
            for number in range(20):
                await cache.set(number, Clicks(one, "w", doc={"clicks": 1}))
                await cache.expire(number)
            await cache.flush()
            assert widgets.total() == 20
            await cache.set(1, Clicks(one, "w", doc={"clicks": 1}))
            await cache.expire_all()
        assert widgets.total() == 21


async def test_what_cannot_be_kept_is_not_taken() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        aio.Process(proxy.url, ttl_s=60, grace_s=60) as one,
        aio.Process(running.url) as other,
    ):
        cache = aio.LruCache[Clicks]()
        for _ in range(2):
            await cache.set("w", Clicks(one, "w", doc={"clicks": 1}, init_cache=True))
        await proxy.cut(refuse=True)
        await until(lambda: not one.client.connected)
        for name in "wx":
            with anyio.move_on_after(0.2) as scope:
                await cache.set(name, Clicks(one, name, doc={"clicks": 1}, init_cache=True))
            assert scope.cancelled_caught
        proxy.accept()
        await until(lambda: one.client.connected)
        assert list(cache) == ["w"]
        await cache.expire_all()
        assert widgets.total() == 2
        await nothing_left(other)


async def test_ends_and_keeps_survive_breaks_of_the_line_once() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        aio.Process(proxy.url, ttl_s=60, grace_s=60) as one,
        aio.Process(running.url) as other,
    ):
        keeper = Clicks(other, "w", doc={})
        await keeper.cache()

        async def cut(after_s: float) -> None:
            await anyio.sleep(after_s)
            await proxy.cut()

        chance = random.Random(5)
        for number in range(12):
            kind: Any = (Clicks, FreeClicks)[number % 2]
            cache = aio.LruCache[Any]()
            # A line that has held for a while is tried again at once.
            await anyio.sleep(0.2)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cut, chance.uniform(0, 0.02))
                for _ in range(3):
                    await cache.set("w", kind(one, "w", doc={"clicks": 1}, init_cache=number % 3))
                await cache.expire_all()
        await until(lambda: not len(one.unsettled))
        await FreeClicks(other, "w", doc={}).end_session()
        await keeper.end_session()
        await eventually_total(36)


# Odd moments ------------------------------------------------------------------------------------


async def test_a_refresh_takes_what_the_other_one_had_kept() -> None:
    async with two() as (_, one, _other):
        mine, theirs = Clicks(one, "w", doc={"clicks": 1}), Clicks(one, "w", doc={"clicks": 2})
        await theirs.cache()
        await mine.refresh(theirs)
        await nothing_left(one)
        assert await mine.end_session()
        assert widgets.total() == 3


async def test_a_damaged_state_stays_and_disturbs_nobody() -> None:
    async with running_server() as running, open_client(running.url) as client:
        value = stock.part_value("Clicks", {"doc": {}}, None, "x")
        await client.set(P(":.moat.kv.lock.bad.:.kept.x"), value)
        await client.set(P(":.moat.kv.lock.bad.:.kept.y"), 5)
        await client.set(P(":.moat.kv.lock:t.:.kept.z"), value)
        async with aio.Process(client) as one:
            update = Clicks(one, "w", doc={"clicks": 1})
            await until(lambda: one.watching._look_at > 0)
            assert await update.end_session()
        assert "value" in await client.get(P(":.moat.kv.lock.bad.:.kept.x"))


async def test_the_last_but_one_sees_to_what_the_last_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both saw the other one's reference, and left their state to it."""
    async with two() as (_, one, other):
        mine, theirs = Clicks(one, "w", doc={"clicks": 1}), Clicks(other, "w", doc={"clicks": 2})
        await mine._course.hold()
        await theirs._course.hold()
        original = ending.read
        seen = anyio.Event()
        count = 0

        async def both_first(*args: Any) -> stock.Stock:
            nonlocal count
            found = await original(*args)
            count += 1
            if count == 2:
                seen.set()
            if count <= 2:
                await seen.wait()
            return found

        monkeypatch.setattr(ending, "read", both_first)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mine.end_session)
            tasks.start_soon(theirs.end_session)
        assert widgets.total() == 3
        await nothing_left(one)


async def test_a_part_that_changes_while_it_is_taken_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (_, one, other):
        theirs = Clicks(other, "w", doc={"clicks": 2})
        await theirs._course.hold()
        assert not await Clicks(one, "w", doc={"clicks": 1}).end_session()
        (part,) = (await at(one)).parts
        place = one.path_of("test.test.w") / resource.KEPT / part.key
        original = ending.removals
        changes = [10, 100]

        def changed(*args: Any) -> Any:
            found = original(*args)
            if changes:
                found[0].options["expect"] = changes.pop()
            return found

        monkeypatch.setattr(ending, "removals", changed)
        assert await theirs.end_session()
        assert (widgets.total(), changes) == (3, [])
        assert "value" not in await one.client.get(place)
        monkeypatch.setattr("moat_kv.coord.course.TRIES", 1)
        await other.create_reference("test.test.v")
        assert not await Clicks(one, "v", doc={"clicks": 1}).end_session()
        last = Clicks(other, "v", doc={"clicks": 1})
        changes.append(10)
        last.force_expiry()
        with pytest.raises(errors.Conflict):
            await last.end_session()
        assert await last.end_session()
        assert widgets.total("v") == 2


async def test_a_conflict_free_part_that_was_taken_over_is_not_left_again() -> None:
    async with two() as (_, one, other):
        keeper = FreeClicks(other, "w", doc={"clicks": 1})
        await keeper.cache()
        update = FreeClicks(one, "w", doc={"clicks": 5})
        await update.cache()
        (part,) = [each for each in (await at(one)).parts if each.state["doc"]["clicks"] == 5]
        await other.client.delete(one.path_of("test.test.w") / resource.KEPT / part.key)
        assert not await update.end_session()
        assert await keeper.end_session()
        assert widgets.total() == 1


async def test_a_process_looks_again_when_it_could_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as (_, one, _other):
        original = one.watching._stocks
        fail = [1]

        async def stocks() -> Any:
            if fail.pop() if fail else False:
                raise errors.Disconnected("by the test")
            looked.set()
            return await original()

        looked = anyio.Event()
        monkeypatch.setattr(one.watching, "_stocks", stocks)
        monkeypatch.setattr(watching, "AGAIN_S", 0.01)
        one.watching._again_s = 0.01
        await Clicks(one, "w", doc={}).end_session()
        with anyio.fail_after(30):
            await looked.wait()


async def test_what_is_left_is_seen_to_later_if_the_server_is_in_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (_, one, other):
        update = Clicks(other, "w", doc={"clicks": 1})
        await update.cache()
        await one.client.delete_tree(one.path_of("test.test.w") / resource.REFERENCES)
        original = ending.replace
        fail = [1]

        async def replace(*args: Any) -> int:
            if fail.pop() if fail else False:
                raise errors.Detached("by the test")
            return await original(*args)

        monkeypatch.setattr(ending, "replace", replace)
        async with one.lock("test.test.w"):
            await Clicks(one, "x", doc={}).cache()
            await until(lambda: one.watching._look_at > 0)
        one.watching._look_at = 0.0
        one.watching.tell()
        await eventually_total(1)


async def test_a_note_of_a_failure_that_cannot_be_made_is_no_other_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (_, one, _other):
        todo = stock.Todo(key="x", rev=0, kind="Clicks", state={})

        async def get(_path: Any) -> Any:
            raise errors.Disconnected("by the test")

        monkeypatch.setattr(one.client, "get", get)
        await ending.note_failure(one.client, one.path_of("w"), todo)


async def test_a_new_session_waits_for_the_name_that_the_old_one_still_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "AGAIN_S", 0.05)
    async with two() as (_, one, _other):
        await Clicks(one, "w", doc={"clicks": 1}).end_session()
        with anyio.fail_after(30):
            while True:
                async with one.client.watch_group(one.watching.group) as states:
                    if one.id in ((await states.__anext__()) or {}):
                        break
        old = one.session
        monkeypatch.setattr(old, "close", lambda: anyio.sleep(0.3))
        old._lose("by the test")
        await until(lambda: one.session is not old)
        await anyio.sleep(0.5)
        assert not one.client.closed
        await Clicks(one, "w", doc={"clicks": 1}).end_session()
        assert widgets.total() == 2


async def test_nobody_waits_for_a_client_that_was_closed() -> None:
    async with running_server() as running, open_client(running.url) as client:
        async with open_client(running.url) as other:
            process = aio.Process(other)
            await process.start()
            update = Clicks(process, "w", doc={"clicks": 1})
            await update._course.hold()
        assert other.closed
        with anyio.fail_after(10):
            with pytest.raises(errors.Disconnected):
                await update.end_session()
        assert not client.closed
