"""Locks and updates over several servers on a real nats-server."""

from __future__ import annotations

import pathlib
from typing import Any

import anyio
import pytest

from moat_kv import P, errors
from moat_kv.coord import aio
from moat_kv.testing import nats
from tests.coord import widgets
from tests.coord.widgets import Clicks, FreeClicks
from tests.engine.nats.test_network_sessions import server_maker
from tests.server.network import until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def fresh() -> None:
    widgets.DONE.clear()


async def test_a_lock_is_one_for_all_servers_and_fenced(tmp_path: pathlib.Path, url: str) -> None:
    serve = server_maker(url, tmp_path)
    fences: list[int] = []

    async def add(process: aio.Process) -> None:
        for _ in range(5):
            async with process.lock("me") as lock:
                found = await process.client.get(P("x"), strict=True)
                await process.client.set(P("x"), found.get("value", 0) + 1, fence=lock.guard)
                fences.append(lock.fence)

    async with serve("n1") as one, serve("n2") as two:
        async with aio.Process(one.url) as here, aio.Process(two.url) as there:
            async with anyio.create_task_group() as tasks:
                for process in (here, there, here, there):
                    tasks.start_soon(add, process)
            assert (await here.client.get(P("x"), strict=True)).value == 20
            assert fences == sorted(set(fences))
            async with here.lock("me") as lock:
                with pytest.raises(errors.AlreadyLocked):
                    await there.lock("me").acquire(0.2)
                await here.session.close()
                async with there.lock("me"):
                    with pytest.raises(errors.StaleFence):
                        await here.client.set(P("x"), 0, fence=lock.guard)


@pytest.mark.parametrize("kind", [Clicks, FreeClicks])
async def test_the_last_on_any_server_executes_what_all_have_merged(
    tmp_path: pathlib.Path, url: str, kind: type[Clicks]
) -> None:
    serve = server_maker(url, tmp_path)
    async with serve("n1") as one, serve("n2") as two:
        async with aio.Process(one.url) as here, aio.Process(two.url) as there:
            caches = [aio.LruCache[Any](max_entries=2) for _ in range(2)]

            async def take(process: aio.Process, cache: aio.LruCache[Any], safe: bool) -> None:
                for number in range(30):
                    update = kind(process, number % 3, doc={"clicks": 1}, init_cache=safe)
                    await cache.set(number % 3, update)
                await cache.expire_all()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take, here, caches[0], True)
                tasks.start_soon(take, there, caches[1], False)
            await until(lambda: not len(here.unsettled) + len(there.unsettled))
            with anyio.fail_after(30):
                while sum(doc["clicks"] for _, doc, _ in widgets.DONE) < 60:
                    await anyio.sleep(0.05)
            assert sum(doc["clicks"] for _, doc, _ in widgets.DONE) == 60


async def test_while_cut_off_locks_and_ends_are_refused_at_once(tmp_path: pathlib.Path) -> None:
    with nats.server() as node:
        serve = server_maker(f"nats://{node.address}/house", tmp_path)
        async with serve("n1") as one, aio.Process(one.url, ttl_s=60, grace_s=60) as process:
            update = Clicks(process, "w", doc={"clicks": 1})
            cache = aio.LruCache[Clicks]()
            await cache.set("w", update)
            node.kill()
            await until(lambda: not one.server.engine.attached)
            with pytest.raises(errors.Detached):
                await process.lock("me").acquire()
            with pytest.raises(errors.Detached):
                await process.create_reference("me")
            with pytest.raises(errors.Detached):
                await update.end_session()
            with pytest.raises(errors.Detached):
                await Clicks(process, "x", doc={}).cache()
            assert len(process.holdings) == 1
            node.start()
            await until(lambda: one.server.engine.attached)
            with anyio.fail_after(30):
                while widgets.total() == 0:
                    try:
                        await cache.expire_all()
                        await update.end_session()
                    except errors.MoatKvError:
                        await anyio.sleep(0.1)
            assert widgets.total() == 1
