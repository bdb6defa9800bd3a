"""What dead processes have left is taken over by live ones."""

from __future__ import annotations

from typing import Any

import pytest

from moat_kv import open_client
from moat_kv.coord import aio, resource
from moat_kv.testing.server import running_server
from tests.client.proxy import proxied
from tests.client.waiting import until
from tests.coord import widgets
from tests.coord.looking import at, eventually_total, nothing_left
from tests.coord.test_locks import two
from tests.coord.widgets import Clicks, FreeClicks

pytestmark = pytest.mark.anyio


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
    async with running_server() as running, open_client(running.url) as client:
        async with aio.Process(client) as one:
            await Clicks(one, "w", doc={"clicks": 1}).cache()
            await widgets.Own(one, "w", foo=1).cache()
        async with aio.Process(client) as other:
            await widgets.Own(other, "x", foo=2).end_session()
            await until(lambda: len(widgets.DONE) == 2)
            # Whoever sees to what is left holds the lock of it for so long.
            async with other.lock("test.test.w"):
                _, parts = (await at(other)).orphaned({other.id})
            assert [part.kind for part in parts] == ["Clicks"]
            assert widgets.total() == 0
