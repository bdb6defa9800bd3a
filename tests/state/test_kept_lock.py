"""The network's lock is kept for a moment, and no longer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest

from moat_kv import open_client
from moat_kv.coord import aio
from moat_kv.errors import AlreadyLocked
from moat_kv.state import kept_lock
from moat_kv.testing.server import running_server
from tests.client import waiting

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def two_locks() -> AsyncIterator[tuple[kept_lock.KeptLock, aio.Lock]]:
    """One that is kept, and a stranger's."""
    async with running_server() as server, open_client(server.url) as client:
        async with aio.Process(client) as process:
            mine = kept_lock.KeptLock(process.lock("x"), client.task_group)
            yield mine, process.lock("x")


async def test_it_is_kept_from_one_state_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_lock, "KEEP_S", 60.0)
    monkeypatch.setattr(kept_lock, "IDLE_S", 60.0)
    async with two_locks() as (mine, other):
        await mine.enter(30)
        guard = mine.guard
        await mine.leave()
        await mine.enter(30)
        assert mine.guard == guard
        with pytest.raises(AlreadyLocked):
            await other.acquire(0.05)
        await mine.leave()
        await mine.release()
        await other.acquire(30)


async def test_it_is_released_when_nobody_has_used_it_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_lock, "KEEP_S", 60.0)
    async with two_locks() as (mine, other):
        await mine.enter(30)
        began = time.monotonic()
        await mine.leave()
        await other.acquire(30)
        assert time.monotonic() - began >= kept_lock.IDLE_S
        await other.release()


async def test_it_is_not_released_while_in_use() -> None:
    async with two_locks() as (mine, other):
        await mine.enter(30)
        await mine.leave()
        await mine.enter(30)
        await anyio.sleep(3 * kept_lock.IDLE_S)
        with pytest.raises(AlreadyLocked):
            await other.acquire(0)
        await mine.leave()
        await other.acquire(30)


async def test_who_releases_it_waits_only_so_long_for_a_release_that_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_lock, "TURN_S", 0.1)
    async with two_locks() as (mine, other):
        await mine.enter(30)
        ended = anyio.Event()

        async def takes_long(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            async with mine._turn:
                task_status.started()
                await ended.wait()

        async with anyio.create_task_group() as tasks:
            await tasks.start(takes_long)
            began = time.monotonic()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await mine.release()
            assert 0.1 <= time.monotonic() - began < 20
            with pytest.raises(AlreadyLocked):
                await other.acquire(0)
            ended.set()
            await other.acquire(30)


async def test_others_do_not_starve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_lock, "KEEP_S", 0.02)
    async with two_locks() as (mine, other):
        had = anyio.Event()

        async def busy() -> None:
            while True:
                await mine.enter(30)
                await mine.leave()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(busy)
            await anyio.sleep(0.01)
            await other.acquire(30)
            had.set()
            tasks.cancel_scope.cancel()
        assert had.is_set()


async def test_one_that_did_not_hold_is_not_kept() -> None:
    async with two_locks() as (mine, other):
        await mine.enter(30)
        mine.doubt()
        await mine.leave()
        await other.acquire(0)
        with pytest.raises(AlreadyLocked):
            await mine.enter(0)
        await other.release()
        await mine.enter(30)


async def test_a_release_that_comes_with_the_next_use_lets_that_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_lock, "KEEP_S", 60.0)
    async with two_locks() as (mine, _other):
        await mine.enter(30)
        await mine.leave()
        await mine._turn.acquire()
        await anyio.sleep(3 * kept_lock.IDLE_S)  # the release waits for its turn now
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mine.enter, 30)
            await waiting.others_wait()
            mine._turn.release()
        await waiting.until(lambda: not mine._is_waiting)
        assert mine._lock.held
