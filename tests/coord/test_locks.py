"""Locks: one at a time, in the order of arrival, fenced, noticed when lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv import Client, P, Path, errors, open_client
from moat_kv.client import claiming, session
from moat_kv.coord import aio, line, resource
from moat_kv.coord.aio import lock as lock_module
from moat_kv.testing.server import RunningServer, running_server
from tests.client.proxy import proxied
from tests.client.waiting import others_wait, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def two(**options: float) -> AsyncIterator[tuple[RunningServer, aio.Process, aio.Process]]:
    """A server, and two processes with a client each."""
    async with (
        running_server() as running,
        open_client(running.url, name="one") as client,
        aio.Process(client, **options) as one,
        aio.Process(running.url, **options) as other,
    ):
        yield running, one, other


async def waiting_at(process: aio.Process, name: str, count: int) -> None:
    """Until so many stand in the line of a lock."""
    place = process.path_of(name) / resource.LINE
    with anyio.fail_after(30):
        while len(await process.client.list(place)) != count:
            await anyio.sleep(0.005)


async def test_a_lock_is_held_by_one_and_then_by_the_next() -> None:
    async with two() as (_, one, other):
        lock, theirs = one.lock("me"), other.lock("me")
        async with lock:
            assert lock.held
            assert lock.guard == (one.path_of("me") / resource.LINE / f"{one.id}-1", lock.fence)
            with pytest.raises(aio.AlreadyLocked) as caught:
                await theirs.acquire(0)
            assert (caught.value.resource, caught.value.holder) == ("me", "one")
            assert str(caught.value) == "me is locked by one"
            assert not theirs.held
            first = lock.fence
        assert not lock.held
        async with theirs:
            assert theirs.fence > first
        with pytest.raises(RuntimeError, match="not held"):
            _ = theirs.fence
        async with lock:
            assert lock.fence > first
        assert await one.client.list(one.path_of("me") / resource.LINE) == []


async def test_waiting_ends_with_the_time_limit_and_leaves_no_ticket() -> None:
    async with two() as (_, one, other):
        async with one.lock("me"):
            for lock in (other.lock("me", timeout_s=0.1), other.lock("me", block=False)):
                with pytest.raises(errors.AlreadyLocked):
                    await lock.acquire()
            with anyio.move_on_after(0.1):
                await other.lock("me").acquire()
            await waiting_at(one, "me", 1)
        async with other.lock("me", block=False):
            pass


async def test_it_goes_round_in_the_order_of_arrival() -> None:
    order: list[int] = []

    async def work(process: aio.Process, number: int) -> None:
        async with process.lock("me") as lock:
            order.append(number)
            fences.append(lock.fence)

    fences: list[int] = []
    async with two() as (_, one, other), anyio.create_task_group() as tasks:
        async with one.lock("me"):
            for number in range(10):
                tasks.start_soon(work, (one, other)[number % 2], number)
                await waiting_at(one, "me", number + 2)
    assert order == list(range(10))
    assert fences == sorted(fences)


async def test_one_that_waits_no_longer_lets_the_one_behind_it_pass() -> None:
    async with two() as (_, one, other), anyio.create_task_group() as tasks:
        passed = anyio.Event()

        async def impatient(scope: anyio.CancelScope) -> None:
            with scope:
                await other.lock("me").acquire()

        async def patient() -> None:
            async with other.lock("me"):
                passed.set()

        scope = anyio.CancelScope()
        async with one.lock("me"):
            tasks.start_soon(impatient, scope)
            await waiting_at(one, "me", 2)
            tasks.start_soon(patient)
            await waiting_at(one, "me", 3)
            scope.cancel()
            await waiting_at(one, "me", 2)
        with anyio.fail_after(30):
            await passed.wait()


async def test_shared_ones_hold_together_and_wait_for_an_exclusive_one_before_them() -> None:
    async with two() as (_, one, other), anyio.create_task_group() as tasks:
        events: list[str] = []

        async def write() -> None:
            async with other.lock("me"):
                events.append("write")

        async def read() -> None:
            async with other.lock("me", shared=True):
                events.append("read")

        async with one.lock("me", shared=True), other.lock("me", shared=True):
            tasks.start_soon(write)
            await waiting_at(one, "me", 3)
            tasks.start_soon(read)
            await waiting_at(one, "me", 4)
            assert events == []
        await waiting_at(one, "me", 0)
    assert events == ["write", "read"]


async def test_a_semaphore_has_so_many_seats() -> None:
    async with two() as (_, one, other), anyio.create_task_group() as tasks:
        taken = anyio.Event()

        async def third() -> None:
            async with other.semaphore("pool", 2):
                taken.set()

        first, second = one.semaphore("pool", 2), other.semaphore("pool", 2, value="x")
        await first.acquire()
        await second.acquire()
        tasks.start_soon(third)
        await waiting_at(one, "pool", 3)
        with pytest.raises(errors.AlreadyLocked):
            await one.semaphore("pool", 2).acquire(0)
        assert not taken.is_set()
        await second.release()
        with anyio.fail_after(30):
            await taken.wait()
        await first.release()
        with pytest.raises(ValueError, match="at least one seat"):
            one.semaphore("pool", 0)


async def test_a_lock_that_is_held_refuses_to_be_acquired_again() -> None:
    async with two() as (_, one, _other):
        lock = one.lock("me")
        async with lock:
            with pytest.raises(RuntimeError, match="not re-entrant"):
                await lock.acquire()
            assert lock.held
        await lock.release()


async def test_a_lock_that_is_deleted_is_lost_and_what_it_guards_is_refused() -> None:
    async with two() as (_, one, other):
        lock = one.lock(P("a.b"))
        await lock.acquire()
        lost = lock.lost
        await one.client.set(P("x"), 1, fence=lock.guard)
        await other.client.delete(lock.guard[0])
        with anyio.fail_after(30):
            await lost.wait()
        assert not lock.held
        with pytest.raises(errors.StaleFence):
            await one.client.set(P("x"), 2, fence=lock.guard)
        async with other.lock(P("a.b")) as theirs:
            await lock.release()  # it does not free the other's
            assert "value" in await one.client.get(theirs.guard[0])
            await other.client.set(P("x"), 3, fence=theirs.guard)
        await lock.acquire()
        assert not lock.lost.is_set()
        await lock.release()


async def test_a_guarded_block_is_cancelled_when_its_lock_is_lost() -> None:
    async with two() as (_, one, _other):
        lock = one.lock("me")

        async def lose() -> None:
            async with lock.guarded():
                await one.client.delete(lock.guard[0])
                await anyio.sleep(60)

        with pytest.raises(errors.LockLost) as caught:
            await lose()
        assert caught.value.resource == "me"
        async with lock.guarded(1):
            pass
        with pytest.raises(LookupError):
            async with lock.guarded():
                raise LookupError
        assert not lock.held


async def test_locks_go_with_the_session_and_new_ones_come_with_the_next() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        aio.Process(proxy.url, grace_s=0.5) as one,
        aio.Process(running.url) as other,
    ):
        lock, waiting = one.lock("me"), other.lock("me")
        await lock.acquire()
        old, lost = one.session, lock.lost
        await proxy.cut(refuse=True)
        with anyio.fail_after(30):
            await waiting.acquire()
            await lost.wait()
        proxy.accept()
        await until(lambda: one.session is not old and one.client.connected)
        with pytest.raises(errors.StaleFence):
            await one.client.set(P("x"), 1, fence=lock.guard)
        await lock.release()
        await other.client.set(P("x"), 1, fence=waiting.guard)
        with pytest.raises(errors.AlreadyLocked):
            await one.lock("me").acquire(0)
        await waiting.release()
        async with lock:
            await one.client.set(P("x"), 2, fence=lock.guard)


async def test_one_that_waits_enters_the_line_anew_when_its_session_is_lost() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        aio.Process(proxy.url, grace_s=0.5) as one,
        aio.Process(running.url) as other,
        anyio.create_task_group() as tasks,
    ):
        got = anyio.Event()

        async def wait() -> None:
            async with one.lock("me"):
                got.set()

        async with other.lock("me"):
            tasks.start_soon(wait)
            await waiting_at(other, "me", 2)
            old = one.session
            await proxy.cut(refuse=True)
            await waiting_at(other, "me", 1)
            proxy.accept()
            await until(lambda: one.session is not old)
            await waiting_at(other, "me", 2)
        with anyio.fail_after(30):
            await got.wait()


async def test_a_broken_line_is_waited_out_within_the_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lock_module, "RELEASE_S", 0.2)
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        aio.Process(proxy.url, ttl_s=60, grace_s=60) as one,
    ):
        await proxy.cut(refuse=True)
        await until(lambda: not one.client.connected)
        with pytest.raises(errors.Disconnected):
            await one.lock("me").acquire(0.3)
        lock = one.lock("me")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lock.acquire)
            await others_wait()
            proxy.accept()
        assert lock.held
        await proxy.cut(refuse=True)
        await until(lambda: not one.client.connected)
        await lock.release()  # goes on in the background
        proxy.accept()
        await waiting_at(one, "me", 0)


async def test_resources_do_not_disturb_those_below_them() -> None:
    async with two() as (_, one, other):
        async with one.lock("a"), other.lock(P("a.b")), other.lock("a.b"):
            assert [str(one.path_of("a.b")), str(one.path_of(P("a.b")))] == [
                ":.moat.kv.lock.a:.b",
                ":.moat.kv.lock.a.b",
            ]
        for bad in (Path(), Path("a", ".line"), ".refs"):
            with pytest.raises(errors.BadPath):
                one.lock(bad)


async def test_a_stopped_process_has_let_go_of_everything() -> None:
    async with running_server() as running, open_client(running.url) as client:
        process = aio.Process(client)
        async with process:
            lock = process.lock("me")
            await lock.acquire()
        assert not lock.held
        await process.stop()
        assert await stands(client) == 0
        with pytest.raises(errors.SessionExpired):
            await lock.acquire()


async def stands(client: Client) -> int:
    found = client.get_tree(P(":.moat.kv.lock"))
    return len([row async for row in found])


async def test_a_process_without_a_server_says_so() -> None:
    with pytest.raises(errors.CannotConnect):
        async with aio.Process("unix:///nowhere/at/all"):
            raise AssertionError("started")


async def test_one_who_waits_for_a_barrier_or_lock_can_be_cancelled_while_it_enters() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        aio.Process(proxy.url, ttl_s=60, grace_s=60) as one,
        aio.Process(running.url) as other,
    ):
        proxy.hold_answers()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.lock("me").acquire)
            # The ticket was made, and its owner does not know.
            await waiting_at(other, "me", 1)
            tasks.cancel_scope.cancel()
        proxy.release_answers()
        await waiting_at(other, "me", 0)


async def test_a_lock_whose_session_ended_while_it_was_entered_is_entered_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "DOUBT_S", 30.0)
    tries: list[str] = []
    enter = line.Line.enter

    async def counted(self: line.Line, key: str, *args: Any) -> claiming.Claim | None:
        tries.append(key)
        return await enter(self, key, *args)

    monkeypatch.setattr(line.Line, "enter", counted)
    async with two() as (running, one, _other):
        running.server.sessions.end(running.server.sessions._live[one.session.id], "by the test")
        lock = one.lock("me")
        with anyio.fail_after(30):
            await lock.acquire()
        assert lock.held
        assert len(tries) == 2, "the client asks at once whether the session lives"
        await one.client.set(P("x"), 1, fence=lock.guard)
        await lock.release()
