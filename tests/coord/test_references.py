"""References: how many processes use a resource, and who is the last."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from moat_kv import P, coord, errors, open_client
from moat_kv.coord import aio, resource
from moat_kv.coord.holding import Holding
from moat_kv.testing.server import RunningServer, running_server
from tests.client.proxy import proxied
from tests.client.waiting import until
from tests.coord.test_locks import two

pytestmark = pytest.mark.anyio


async def test_processes_are_counted_not_references() -> None:
    async with two() as (_, one, other):
        first = await one.create_reference("me")
        again = await one.create_reference("me", block=False)
        assert (first.resource, first.block, again.block) == ("me", True, False)
        assert await first.count() == 1
        theirs = await other.create_reference("me")
        assert await again.count() == await theirs.count() == 2
        assert not await first.dereference()
        assert await theirs.count() == 2
        assert not await again.dereference()
        assert again.dereferenced
        assert await theirs.count() == 1
        assert await theirs.dereference()
        assert not await theirs.dereference()
        found = one.client.get_tree(one.path_of("me"))
        assert [str(row.path) async for row in found] == []


async def test_modifications_are_counted_until_the_last_reference_is_gone() -> None:
    async with two() as (_, one, other):
        mine, theirs = await one.create_reference("me"), await other.create_reference("me")
        assert await mine.get_times_modified() == 0
        async with mine.lock():
            assert await mine.increment_times_modified() == 1
        async with theirs.lock():
            assert await theirs.increment_times_modified() == 2
        assert not await mine.dereference()
        assert await theirs.get_times_modified() == 2
        assert await theirs.dereference()
        again = await one.create_reference("me")
        assert await again.get_times_modified() == 0


async def test_the_callback_is_called_once_and_for_the_last_holder() -> None:
    called: list[Any] = []

    def plain(*args: Any, **kwargs: Any) -> None:
        called.append((args, kwargs))

    async def asynchronous() -> None:
        called.append("async")

    async with two() as (_, one, other):
        mine, theirs = await one.create_reference("me"), await other.create_reference("me")
        assert not await mine.dereference(plain, (1,), {"x": 2})
        async with theirs.lock():
            assert await theirs.dereference(plain, (1,), {"x": 2})
        assert not await theirs.dereference(plain)
        assert called == [((1,), {"x": 2})]
        mine = await one.create_reference("me")
        assert await mine.dereference(asynchronous)
        assert called[1:] == ["async"]


async def test_many_that_leave_at_the_same_time_have_one_last() -> None:
    called: list[int] = []
    async with two() as (_, one, other):
        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                for process in (one, other, one, other):
                    reference = await process.create_reference("me")
                    tasks.start_soon(reference.dereference, called.append, (1,))
        assert called == [1] * 5


async def test_what_the_callback_raises_passes_and_it_is_not_called_again() -> None:
    def fail() -> None:
        raise LookupError("no")

    async with two() as (_, one, _other):
        reference = await one.create_reference("me")
        with pytest.raises(LookupError):
            await reference.dereference(fail)
        assert reference.dereferenced
        assert not await reference.dereference(fail)
        async with reference.lock(block=False):
            pass


async def test_a_reference_whose_lock_cannot_be_had_goes_on() -> None:
    async with two() as (_, one, other):
        mine, theirs = await one.create_reference("me"), await other.create_reference("me")
        async with mine.lock():
            with pytest.raises(one.AlreadyLocked):
                await theirs.dereference(block=False)
            with pytest.raises(errors.AlreadyLocked):
                await theirs.lock(timeout_s=0.05).acquire()
            assert await mine.count() == 2
        assert not theirs.dereferenced
        await mine.dereference()
        assert await theirs.dereference()


async def test_one_whose_lock_was_lost_is_not_dereferenced() -> None:
    async with two() as (_, one, other):
        mine = await one.create_reference("me")
        lock = mine.lock()
        await lock.acquire()
        await other.client.delete(lock.guard[0])
        with pytest.raises(errors.StaleFence):
            await mine.dereference()
        assert await mine.count() == 1
        await lock.release()
        assert await mine.dereference()


async def test_references_of_a_process_that_died_are_not_counted() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        aio.Process(proxy.url, grace_s=0.5) as one,
        aio.Process(running.url) as other,
    ):
        mine, theirs = await one.create_reference("me"), await other.create_reference("me")
        old = one.session
        await proxy.cut(refuse=True)
        with anyio.fail_after(30):
            while await theirs.count() == 2:
                await anyio.sleep(0.01)
        proxy.accept()
        # It was not dead after all.
        await until(lambda: one.session is not old)
        with anyio.fail_after(30):
            while await theirs.count() == 1:
                await anyio.sleep(0.01)
        assert not await theirs.dereference()
        assert await mine.dereference()


async def test_one_that_was_dereferenced_while_the_session_was_away_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (_, one, other):
        reference = await one.create_reference("me")
        holding = reference._holding
        assert holding is not None
        assert one.holdings.leave(holding)
        await one.holdings.renew()
        one.holdings._of["me"] = holding

        async def leave_meanwhile(each: Holding) -> None:
            del one.holdings._of["me"]
            await original(each)

        original = one.holdings.register
        monkeypatch.setattr(one.holdings, "register", leave_meanwhile)
        await one.holdings.renew()
        theirs = await other.create_reference("me")
        assert await theirs.count() == 1


async def test_a_reference_whose_session_ended_before_the_answer_is_made_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (_, one, other):
        original = one.client.set
        old = one.session

        async def set_and_lose(*args: Any, **options: Any) -> Any:
            result = await original(*args, **options)
            if one.session is old:
                await original(P("x"), 1)
                old.ended = True
                one.session = await one._open_session()
                await other.client.delete(args[0])
            return result

        monkeypatch.setattr(one.client, "set", set_and_lose)
        await one.create_reference("me")
        theirs = await other.create_reference("me")
        assert await theirs.count() == 2


async def test_a_reference_that_cannot_be_made_leaves_nothing() -> None:
    async with running_server() as running, open_client(running.url) as client:
        process = aio.Process(client)
        await process.start()
        await process.stop()
        with pytest.raises(errors.SessionExpired):
            await process.create_reference("me")
        assert len(process.holdings) == 0
        found = client.get_tree(P(":.moat.kv.lock"))
        assert [row async for row in found] == []
        assert process.path_of("me") == P(":.moat.kv.lock.me")
        assert resource.name_of(P("a.b")) == "a.b"


async def test_who_is_cancelled_while_its_reference_is_made_leaves_none() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        aio.Process(proxy.url, ttl_s=60, grace_s=60) as one,
        aio.Process(running.url) as other,
    ):
        theirs = await other.create_reference("me")
        proxy.hold_answers()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.create_reference, "me")
            # It was made, and its owner does not know.
            with anyio.fail_after(30):
                while await theirs.count() != 2:
                    await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
        proxy.release_answers()
        with anyio.fail_after(30):
            while await theirs.count() != 1:
                await anyio.sleep(0.005)


def test_threads_have_references(served: RunningServer) -> None:
    called: list[str] = []

    def work(process: coord.Process) -> None:
        for _ in range(5):
            reference = process.create_reference("me")
            with reference.lock():
                seen = reference.count()
                reference.increment_times_modified()
                assert reference.get_times_modified() >= 1
            assert seen >= 1
            reference.dereference(called.append, (threading.current_thread().name,))

    with coord.Process(served.url) as one, coord.Process(served.url) as other:
        keep = one.create_reference("me", block=False)
        assert (keep.resource, keep.block, keep.dereferenced) == ("me", False, False)
        threads = [
            threading.Thread(target=work, args=(process,), name="worker")
            for process in (one, other, one)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert called == []
        assert keep.dereference(called.append, kwargs=None, args=("last",))
        assert called == ["last"]
