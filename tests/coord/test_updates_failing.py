"""What an update fails on is kept, and tried again."""

from __future__ import annotations

import pytest

from moat_kv import errors
from moat_kv.coord import aio, resource, unsettled
from tests.client.waiting import until
from tests.coord import widgets
from tests.coord.looking import at, eventually_total, nothing_left
from tests.coord.test_locks import two
from tests.coord.widgets import Clicks

pytestmark = pytest.mark.anyio


async def test_what_execute_fails_on_is_tried_again_with_the_same_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unsettled, "FIRST_S", 0.05)
    widgets.FAIL["w"] = 1_000_000
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
        widgets.FAIL["w"] = 2
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
