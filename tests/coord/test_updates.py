"""Updates: merged while others hold the resource, executed by the last, and once."""

from __future__ import annotations

import types
from typing import Any

import pytest

from moat_kv.coord import aio, course
from tests.coord import widgets
from tests.coord.looking import at, nothing_left
from tests.coord.test_locks import two
from tests.coord.widgets import Clicks, FreeClicks

pytestmark = pytest.mark.anyio


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


async def test_refreshing_prolongs_the_soft_session_but_not_the_hard_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    monkeypatch.setattr(course, "time", types.SimpleNamespace(monotonic=lambda: now_s))
    async with two() as (_, one, _other):
        update = Clicks(one, "w", doc={}, soft_session=0.2, hard_session=100)
        hard = Clicks(one, "w", doc={}, soft_session=100, hard_session=0.2)
        for _ in range(10):
            now_s += 0.05
            await update.refresh(Clicks(one, "w", doc={"clicks": 1}))
            await hard.refresh(Clicks(one, "w", doc={"clicks": 1}))
        assert not update.is_expired()
        assert hard.is_expired()


async def test_own_attributes_go_with_the_state() -> None:
    async with two() as (_, one, other):
        options: dict[str, Any] = {"database": widgets.Widget, "collection": widgets.Widget}
        mine, theirs = (
            widgets.Own(one, 7, foo=1, **options),
            widgets.Own(other, 7, foo=2, **options),
        )
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
