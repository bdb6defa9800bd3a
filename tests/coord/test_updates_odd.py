"""Updates at odd moments: things that happen in between."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from moat_kv import P, errors, open_client
from moat_kv.coord import aio, ending, recovery, resource, stock, watching
from moat_kv.testing.server import running_server
from tests.client.waiting import others_wait, until
from tests.coord import widgets
from tests.coord.looking import at, can_execute, eventually_total, nothing_left
from tests.coord.test_locks import two
from tests.coord.widgets import Clicks, FreeClicks

pytestmark = pytest.mark.anyio


def change_what_is_taken(monkeypatch: pytest.MonkeyPatch, changes: list[int]) -> None:
    """While there are changes left, a part is expected at a revision that it does not have."""
    original = ending.removals

    def changed(*args: Any) -> Any:
        found = original(*args)
        if changes:
            found[0].options["expect"] = changes.pop()
        return found

    monkeypatch.setattr(ending, "removals", changed)


async def test_a_refresh_takes_what_the_other_one_had_kept() -> None:
    async with two() as (_, one, _other):
        mine, theirs = Clicks(one, "w", doc={"clicks": 1}), Clicks(one, "w", doc={"clicks": 2})
        await theirs.cache()
        await mine.refresh(theirs)
        await nothing_left(one)
        assert await mine.end_session()
        assert widgets.total() == 3


async def test_an_update_of_something_else_is_not_merged() -> None:
    async with two() as (_, one, _other):
        cache = aio.LruCache[Any]()
        await cache.set("w", Clicks(one, "w", doc={"clicks": 1}))
        for stranger in (Clicks(one, "x", doc={"clicks": 2}), FreeClicks(one, "w", doc={})):
            await stranger._course.hold()
            with pytest.raises(
                ValueError, match=r"cannot be merged into one of test.test.w \(Click"
            ):
                await cache.set("w", stranger)
            with anyio.fail_after(30):
                # It refers to its resource no more.
                while (await at(one, "test.test.x")).references:
                    await anyio.sleep(0.01)
        await cache.expire_all()
        assert widgets.total() == 1
        await nothing_left(one)


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
        changes = [10, 100]
        change_what_is_taken(monkeypatch, changes)
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


@pytest.mark.parametrize("owner_is_back", [False, True], ids=["still lost", "back"])
async def test_a_part_whose_owner_goes_on_while_it_is_taken_over_counts_once(
    monkeypatch: pytest.MonkeyPatch, owner_is_back: bool
) -> None:
    """The owner, which had been taken for dead, keeps more after it was read for the first time."""
    async with two() as (_, one, other):
        for each in (one, other):
            can_execute(each, Clicks)
        theirs = Clicks(other, "w", doc={"clicks": 1}, init_cache=True)
        await theirs.cache()
        await one.client.delete_tree(one.path_of("test.test.w") / resource.REFERENCES)
        original = ending.read
        read: list[stock.Stock] = []

        async def read_and_go_on(*args: Any) -> stock.Stock:
            found = await original(*args)
            read.append(found)
            if len(read) == 1:
                await theirs.refresh(Clicks(other, "w", doc={"clicks": 10}))
                if owner_is_back:
                    await other.holdings.renew()
            return found

        monkeypatch.setattr(ending, "read", read_and_go_on)
        await recovery.settle_left(one, one.ground, "test.test.w")
        assert widgets.total() == (0 if owner_is_back else 11)
        await theirs.refresh(Clicks(other, "w", doc={"clicks": 100}))
        assert await theirs.end_session()
        assert widgets.total() == 111
        await nothing_left(one)


async def test_what_was_taken_over_does_not_come_back_when_the_end_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (_, one, other):
        theirs = Clicks(other, "w", doc={"clicks": 2})
        await theirs.cache()
        assert not await Clicks(one, "w", doc={"clicks": 1}).end_session()
        (mine,) = [part for part in (await at(one)).parts if part.reference]
        await one.client.delete(one.path_of("test.test.w") / resource.KEPT / mine.key)
        changes = [10]
        change_what_is_taken(monkeypatch, changes)
        assert await theirs.end_session()
        assert (widgets.total(), changes) == (1, [])


async def test_what_cannot_be_kept_after_it_was_taken_over_is_not_merged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (_, one, other):
        update = Clicks(one, "w", doc={"clicks": 1}, init_cache=True)
        await update.cache()
        await other.client.delete_tree(one.path_of("test.test.w") / resource.KEPT)
        original = ending.keep
        calls: list[Any] = []

        async def keep(*args: Any) -> int | None:
            calls.append(args)
            if len(calls) == 2:
                raise errors.Detached("by the test")
            return await original(*args)

        monkeypatch.setattr(ending, "keep", keep)
        with pytest.raises(errors.Detached):
            await update.refresh(Clicks(one, "w", doc={"clicks": 10}))
        assert update.doc == {}
        await update.refresh(Clicks(one, "w", doc={"clicks": 100}))
        assert await update.end_session()
        assert widgets.total() == 100


async def test_who_waits_to_be_merged_into_one_that_could_not_be_kept_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (_, one, _other):
        cache = aio.LruCache[Clicks]()
        original = ending.keep
        fail = [1]
        entered = anyio.Event()

        async def keep(*args: Any) -> int | None:
            if fail:
                fail.pop()
                entered.set()
                await others_wait()
                raise errors.Detached("by the test")
            return await original(*args)

        async def first() -> None:
            with pytest.raises(errors.Detached):
                await cache.set("w", Clicks(one, "w", doc={"clicks": 1}, init_cache=True))

        monkeypatch.setattr(ending, "keep", keep)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await entered.wait()
            assert await cache.set("w", Clicks(one, "w", doc={"clicks": 10}, init_cache=True))
        assert list(cache) == ["w"]
        await cache.expire_all()
        assert widgets.total() == 10


async def test_a_write_that_came_late_is_known_by_what_it_has_written() -> None:
    async with two() as (_, one, _other):
        answers: list[Any] = [errors.RequestTimeout("set", 1), errors.Conflict("a", 1, 2)]
        done: list[int | None] = [None, 7]

        async def act() -> int:
            raise answers.pop(0)

        async def look() -> int | None:
            return done.pop(0)

        assert await ending.once(one.client, act, look) == 7
        answers.append(errors.Conflict("a", 1, 2))
        with pytest.raises(errors.Conflict):
            await ending.once(one.client, act, look)


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
        assert not fail


async def test_what_is_left_is_seen_to_later_if_the_server_is_in_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (_, one, other):
        can_execute(other, Clicks)
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
        assert not fail


async def test_a_note_of_a_failure_that_cannot_be_made_is_no_other_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (_, one, _other):
        todo = stock.Todo(key="x", rev=0, kind="Clicks", state={})

        async def get(_path: Any) -> Any:
            asked.append(1)
            raise errors.Disconnected("by the test")

        asked: list[int] = []
        monkeypatch.setattr(one.client, "get", get)
        await ending.note_failure(one.client, one.path_of("w"), todo)
        assert asked


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
