"""Jobs while the network is parted, and afterwards."""

from __future__ import annotations

import pathlib

import anyio
import pytest

from moat_kv import P
from moat_kv.config import Places
from moat_kv_runner import commands, obtaining
from moat_kv_runner.job import JobState
from tests.runner import parts
from tests.runner.bench import GROUP
from tests.runner.parts import Fleet, Place, until

pytestmark = pytest.mark.anyio


async def _two(
    made: Fleet, *jobs: str, isolate: str = "inline"
) -> tuple[Place, Place, anyio.CancelScope]:
    """A runner at each of two places; the first has the jobs, and ends with the scope."""
    one, two = made.places
    scope = await made.runner(one, isolate=isolate)
    for job in jobs:
        await one.held_by(job, "n1")
    await made.runner(two, isolate=isolate)
    return one, two, scope


async def test_split_is_survived_as_each_job_asks(tmp_path: pathlib.Path) -> None:
    async with parts.fleet(tmp_path, "n1", "n2") as made:
        for policy in ("each", "fenced", "stick"):
            await made.job(policy, on_split=policy)
        await made.job("here", kind="at", node="n1")
        one, two, runner = await _two(made, "each", "fenced", "stick")
        one.site.cut()
        # Where there is agreement, all but the one that sticks to its runner are taken over.
        for policy in ("each", "fenced"):
            await two.held_by(policy, "n2")
        # Where there is none, all but the one that is not without a claim go on.
        stuck = await one.runs_apart("stick")
        for job in ("each", "here"):
            await one.runs_apart(job)
        await until(lambda: one.is_still("fenced"))
        assert await two.holder("stick") is None
        assert await two.seen("stick", "n2") is None
        one.site.heal()
        # Of each what began first goes on, without a break, and has a claim.
        for job in ("each", "stick"):
            run = (await one.goes_on(job)).run
            assert (await two.held_by(job, "n1")).run == run
            assert await two.settled(job, "n1") == "n1"
        assert (await two.held_by("stick", "n1")).run == stuck.run
        await until(lambda: _is_fenced(one, "here"))
        await until(lambda: two.is_still("each", "n2"))
        # Both are kept: what the loser had is in a state of its own.
        lost, won = await until(lambda: _ended(two, "each", "n2")), await two.state("each")
        assert lost.reason == "runner n1 went on with it when the network was whole again"
        assert (lost.running, won.running, won.node) == (False, True, "n1")
        assert await two.holder("fenced") == "n2"
        # Ended in good order it is known not to be at work.
        runner.cancel()
        await two.held_by("stick", "n2")


async def _is_fenced(place: Place, job: str) -> bool:
    return bool((await place.seen(job)).fence)


async def test_loser_without_a_claim_is_cancelled_and_told(tmp_path: pathlib.Path) -> None:
    async with parts.fleet(tmp_path, "n1", "n2") as made:
        await made.settings(reconcile="newest")
        await made.job("j")
        one, two, _ = await _two(made, "j", isolate="process")
        one.site.cut()
        await one.runs_apart("j")
        held = await two.held_by("j", "n2")
        one.site.heal()
        assert await two.settled("j", "n1") == "n2"
        told = await until(lambda: _told(made))
        assert told == "runner n2 goes on with it, after the network was parted"
        await until(lambda: two.is_still("j", "n1"))
        assert (await two.goes_on("j", "n2")).run == held.run
        lost = await until(lambda: _ended(two, "j", "n1"))
        assert lost.reason == "runner n2 went on with it, not this one"


async def _told(made: Fleet) -> str | None:
    return made.told().get(("j", "n1"))


async def _ended(place: Place, job: str, name: str) -> JobState | None:
    state = await place.part_state(job, name)
    return None if state.running else state


@pytest.mark.parametrize(
    ("text", "is_async"),
    [pytest.param(parts.COUNTER, True, id="async"), pytest.param(parts.QUICK, None, id="quick")],
)
async def test_run_in_a_process_gets_its_claim_late(
    tmp_path: pathlib.Path, text: str, is_async: bool | None
) -> None:
    async with parts.fleet(tmp_path, "n1") as made:
        (one,) = made.places
        await made.job("j", text, is_async=is_async)
        await made.runner(one, "n1", isolate="process")
        await one.held_by("j", "n1")
        one.site.cut()
        apart = await one.runs_apart("j")
        one.site.heal()
        assert (await one.held_by("j", "n1")).run == apart.run
        assert await one.settled("j", "n1") == "n1"
        # The line itself is bound: nothing is written for a claim that is gone.
        await one.desk.delete(commands.claim_path(Places(), "any", GROUP, P("j")))
        assert (await one.held_by("j", "n1")).run != apart.run


async def test_runners_of_one_part_run_it_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each begins if the one before it has not been seen to for so long.
    monkeypatch.setattr(obtaining, "APART_TURN_S", 4.0)
    async with parts.fleet(tmp_path, "n1") as made:
        (one,) = made.places
        await made.job("j")
        ends = {name: await made.runner(one, name) for name in ("a", "b", "c")}
        first = await until(lambda: one.holder("j"))
        await one.held_by("j", first)
        one.site.cut()

        async def runs_where() -> str | None:
            for name in ends:
                seen = await one.seen("j", name)
                if seen is not None and not seen.fence and not await one.is_still("j", name):
                    return name
            return None

        assert await until(runs_where) == first
        ends[first].cancel()
        del ends[first]
        second = await until(runs_where)
        assert second != first
        (third,) = ends.keys() - {second}
        assert await one.seen("j", third) is None
        one.site.heal()
        await one.held_by("j", second)
        assert await one.seen("j", third) is None
