"""Caches of updates: what comes is merged, what goes is ended."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest

from moat_kv import open_client
from moat_kv.coord import aio, unsettled
from moat_kv.testing.server import running_server
from tests.client.proxy import proxied
from tests.client.waiting import until
from tests.coord import widgets
from tests.coord.looking import eventually_total, nothing_left
from tests.coord.test_locks import two
from tests.coord.widgets import Clicks, FreeClicks

pytestmark = pytest.mark.anyio


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


async def test_ends_and_keeps_survive_breaks_of_the_line_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unsettled, "FIRST_S", 0.05)
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
        for number in range(6):
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
        await eventually_total(18)
