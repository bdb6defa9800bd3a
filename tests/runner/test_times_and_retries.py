"""Jobs with cron expressions, and jobs that fail too often, on a runner."""

from __future__ import annotations

import time

import anyio
import pytest

from moat_kv import P
from moat_kv.client import error_record
from moat_kv_runner import commands
from moat_kv_runner.job import parse_state
from tests.runner.bench import bench

pytestmark = pytest.mark.anyio

EVERY_SECOND = "* * * * * *"


async def test_cron_job_starts_at_each_of_its_times() -> None:
    text = "return (await _client.patch(_P('n'), 'add', 1)).value"
    async with bench("n1") as b:
        await b.job(text, cron=EVERY_SECOND)
        await b.state(lambda state: state.result == 3)
        history = [parse_state(each.value) for each in await b.desk.history(b.state_path())]
    ends = [state for state in history if state.reason == "done"]
    assert [state.result for state in ends[-3:]] == [3, 2, 1]
    seconds = [int(state.started or 0) for state in ends]
    assert len(set(seconds)) == len(seconds), "once for each"
    for state in ends:
        assert state.computed == int(state.stopped or 0) + 1, "the next second after its end"


async def test_time_that_passes_during_a_run_is_left_out() -> None:
    text = """
        import anyio, time
        await _client.patch(_P("at"), "append", time.time())
        await anyio.sleep(1.2)
    """
    async with bench("n1") as b:
        await b.job(text, cron=EVERY_SECOND)
        first, second = (await b.value(P("at"), lambda times: len(times) >= 2))[:2]
    assert int(second) - int(first) >= 2


async def test_run_makes_room_for_the_next() -> None:
    text = """
        import anyio
        n = (await _client.patch(_P("n"), "add", 1)).value
        if n >= 3:
            return "there was room twice"
        await anyio.sleep_forever()
    """
    # Inline: within a second it has to begin, and to come to its end.
    async with bench("n1", isolate="inline") as b:
        await b.job(text, cron=EVERY_SECOND, overlap="restart")
        state = await b.state(lambda state: state.result)
        assert state.result == "there was room twice"


async def test_job_that_fails_too_often_waits_until_somebody_acts() -> None:
    text = """
        n = (await _client.patch(_P("n"), "add", 1)).value
        raise RuntimeError(n)
    """
    async with bench("n1") as b:
        place = await b.job(text, delay=0.01, max_failures=2)
        state = await b.state(lambda state: state.backoff == 2)
        assert state.parked is not None
        assert state.computed is None
        assert state.reason == "failed: RuntimeError: 2"
        record = await error_record.find(b.desk, "run", place)
        assert record is not None
        assert not record.resolved

        await b.gone(b.claim_path())
        await commands.change(b.desk, place, target=time.time())
        state = await b.state(lambda state: state.backoff == 1)
        state = await b.state(lambda state: state.parked)
        assert state.reason == "failed: RuntimeError: 4", "it may fail as often again"

        await b.gone(b.claim_path())
        await b.store("code.job", "return 'mended'")
        state = await b.state(lambda state: state.result)
        assert (state.result, state.backoff, state.parked) == ("mended", 0, None)


async def test_parked_job_is_not_tried_by_a_runner_that_comes_later() -> None:
    async with bench("n1") as b:
        await b.job("raise RuntimeError", delay=0.01, max_failures=1)
        parked = await b.state(lambda state: state.parked)
        await b.node("n2")
        await b.job("return 1", path="other")
        await b.state(path="other")
        await anyio.sleep(0.2)
        assert await b.state(lambda state: True) == parked
