"""Elections and barriers."""

from __future__ import annotations

import threading
from contextlib import aclosing

import anyio
import pytest

from moat_kv import coord, errors
from moat_kv.coord import aio, resource
from moat_kv.testing.server import RunningServer, running_server
from tests.client.proxy import proxied
from tests.coord.test_locks import two, waiting_at


@pytest.mark.anyio
async def test_the_first_candidate_leads_until_it_resigns() -> None:
    async with two() as (_, one, other), anyio.create_task_group() as tasks:
        mine, theirs = one.election("boss", {"at": "one"}), other.election("boss", "other")
        seen: list[object] = []

        async def observe() -> None:
            async with aclosing(mine.leaders()) as leaders:
                async for leader in leaders:
                    seen.append(leader.value if leader else None)
                    if seen[-2:] == ["other", None]:
                        break

        tasks.start_soon(observe)
        with anyio.fail_after(30):
            while not seen:
                await anyio.sleep(0.005)
        assert await theirs.leader() is None
        async with mine:
            assert await theirs.leader() == aio.Leader({"at": "one"}, mine.fence, "one")
            with pytest.raises(errors.AlreadyLocked):
                await theirs.campaign(0.05)
            await waiting_at(one, "boss", 1)
            tasks.start_soon(theirs.campaign)
            await waiting_at(one, "boss", 2)
        with anyio.fail_after(30):
            while not theirs.held:
                await anyio.sleep(0.005)
        await theirs.resign()
    assert seen[0] is None
    assert seen[-3:] == [{"at": "one"}, "other", None]


@pytest.mark.anyio
async def test_an_observer_sees_who_leads_after_a_break_of_its_line() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        aio.Process(proxy.url) as one,
        aio.Process(running.url) as other,
    ):
        leaders = one.election("boss").leaders()
        assert await leaders.__anext__() is None
        await proxy.cut()
        async with other.election("boss", 7):
            with anyio.fail_after(30):
                found = await leaders.__anext__()
            assert found is not None
            assert found.value == 7
        await leaders.aclose()


@pytest.mark.anyio
async def test_a_barrier_opens_when_enough_are_there_and_again() -> None:
    async with two() as (_, one, other):
        places: list[int] = []

        async def arrive(process: aio.Process) -> None:
            places.append(await process.barrier("start", 3).wait(30))

        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(arrive, one)
                tasks.start_soon(arrive, other)
                await waiting_at(one, "start", 2)
                assert len(places) % 3 == 0
                tasks.start_soon(arrive, other)
        assert sorted(places) == [0, 0, 1, 1, 2, 2]
        found = one.client.get_tree(one.path_of("start"))
        assert [str(row.path) async for row in found] == []


@pytest.mark.anyio
async def test_more_than_enough_are_several_rounds() -> None:
    async with two() as (_, one, other):
        places: list[int] = []

        async def arrive(process: aio.Process) -> None:
            places.append(await process.barrier("start", 2).wait(30))

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(arrive, (one, other)[number % 2])
        assert sorted(places) == [0] * 6 + [1] * 6


@pytest.mark.anyio
async def test_too_few_at_a_barrier_give_up() -> None:
    async with two() as (_, one, _other):
        # On a machine that is held up it has not seen itself there after so short a time.
        said = "start: 0 of 2"
        for limit_s in (0.1, 2.0, 20.0):
            if said.startswith("start: 0 of 2"):
                with pytest.raises(TimeoutError) as caught:
                    await one.barrier("start", 2, timeout_s=limit_s).wait()
                said = str(caught.value).replace(f"{limit_s:g} s", "LIMIT")
                await waiting_at(one, "start", 0)
        assert said == "start: 1 of 2 came within LIMIT"
        for number in (0, 500):
            with pytest.raises(ValueError, match="1 to 499 parties"):
                one.barrier("start", number)


@pytest.mark.anyio
async def test_who_died_at_a_barrier_is_not_counted_and_leaves_nothing() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        aio.Process(proxy.url, grace_s=0.5) as one,
        aio.Process(running.url) as other,
        anyio.create_task_group() as tasks,
    ):
        barrier = one.barrier("start", 2)
        assert (barrier.name, barrier.parties) == ("start", 2)
        tasks.start_soon(barrier.wait)
        await waiting_at(other, "start", 1)
        old = one.session
        await proxy.cut(refuse=True)
        await waiting_at(other, "start", 0)
        with pytest.raises(TimeoutError):
            await other.barrier("start", 2).wait(0.2)
        await waiting_at(other, "start", 0)
        # One that had passed when it died.
        stray = other.path_of("start") / resource.PASSED / "nobody"
        await other.client.set(stray, 1)
        proxy.accept()
        with anyio.fail_after(30):
            while one.session is old:
                await anyio.sleep(0.01)
            assert await other.barrier("start", 2).wait() in (0, 1)
        with anyio.fail_after(30):
            while "value" in await other.client.get(stray):
                await anyio.sleep(0.01)


def test_threads_elect_and_meet(served: RunningServer) -> None:
    with coord.Process(served.url) as process:
        places: list[int] = []
        with process.election("boss", 1) as lead:
            assert lead.held
            found = lead.leader()
            assert found == coord.Leader(1, lead.fence, process.client.name)
            leaders = lead.leaders()
            assert next(leaders) == found
            leaders.close()
        barrier = process.barrier("start", 3)
        assert (barrier.name, barrier.parties) == ("start", 3)
        threads = [
            threading.Thread(target=lambda: places.append(barrier.wait(30))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(places) == [0, 1, 2]
