"""Jobs, code and modules that change while they run, also many times over."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest

from moat_kv import P
from moat_kv.code import ModuleRoot
from moat_kv_runner import commands
from tests.runner.bench import bench

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]

LOGGED = """
    import anyio
    with anyio.CancelScope(shield=True):
        await _client.patch(_P("log"), "append", [n, 1])
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await _client.patch(_P("log"), "append", [n, -1])
"""


def at_once(log: list[Any]) -> int:
    """How many runs were under way at the same time, at most."""
    present = highest = 0
    for _, change in log:
        present += change
        highest = max(highest, present)
    return highest


async def test_job_that_changes_a_hundred_times_a_second_runs_with_the_last_data() -> None:
    async with bench("n1", "n2") as b:
        place = await b.job(LOGGED, data={"n": 0})
        await b.value(P("log"))
        for n in range(1, 101):
            await commands.change(b.desk, place, data={"n": n})
            await anyio.sleep(0.008)
        log = await b.value(P("log"), lambda log: log[-1] == [100, 1])
        assert at_once(log) == 1
        state = await b.state(lambda state: state.reason == "running")
        assert state.backoff == 0


async def test_job_that_is_deleted_and_comes_back_never_runs_twice_at_once() -> None:
    chance = random.Random(2)
    async with bench("n1", "n2", "n3") as b:
        place = await b.job(LOGGED, data={"n": 0})
        await b.value(P("log"))
        value = (await b.desk.get(place)).value
        for n in range(1, 40):
            await b.desk.delete(place)
            await anyio.sleep(chance.uniform(0, 0.02))
            await b.desk.set(place, {**value, "data": {"n": n}})
            await anyio.sleep(chance.uniform(0, 0.02))
        log = await b.value(P("log"), lambda log: log[-1] == [39, 1])
        assert at_once(log) == 1
        await b.desk.delete(place)
        await b.gone(b.claim_path())


async def test_procedure_that_is_deleted_and_comes_back_is_waited_for() -> None:
    async with bench("n1", "n2") as b:
        await b.job(LOGGED, data={"n": 0})
        await b.value(P("log"))
        for _ in range(5):
            await b.code.remove("code.job")
            state = await b.state(lambda state: state.reason != "running")
            assert (state.reason, state.backoff) == ("waiting: no procedure code.job", 0)
            await b.store("code.job", LOGGED)
            await b.state(lambda state: state.reason == "running")
        assert at_once(await b.get("log")) == 1


async def test_changed_module_restarts_all_its_jobs_and_a_broken_one_has_them_wait() -> None:
    async with bench("n1", "n2") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        base = P("changing_base")
        await modules.add(base, code="v = 0")
        await modules.add(P("changing"), code="from changing_base import v", requires=[base])
        text = "import anyio, changing\nawait _client.set(_P('seen') / n, changing.v)"
        for n in range(10):
            # Half of them do not say what they require.
            needs = [P("changing")] if n % 2 else []
            text_n = f"n = {n}\n{text}\nawait anyio.sleep_forever()"
            await b.store(f"code.n{n}", text_n, requires=needs)
            await b.job(code=P(f"code.n{n}"), path=f"job.n{n}")

        async def all_see(v: int) -> None:
            for n in range(10):
                await b.value(P("seen") / n, lambda seen: seen == v)

        await all_see(0)
        await modules.add(base, code="v = 1")
        await all_see(1)
        await b.desk.set(b.places.module + base, {"code": "v = ("})
        for n in range(10):
            state = await b.state(lambda state: state.reason != "running", path=f"job.n{n}")
            expected = "waiting: changing_base: line 1, column 5: '(' was never closed"
            assert state.reason == expected
        await modules.add(base, code="v = 2")
        await all_see(2)


async def test_words_for_people_beside_code_and_modules_restart_nobody() -> None:
    async with bench("n1") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("worded"), code="v = 0")
        text = LOGGED.replace("import anyio", "import anyio, worded").replace("[n,", "[worded.v,")
        await b.job(text)
        await b.value(P("log"))
        await modules.add(P("worded"), code="v = 0", info="for people", version="2")
        await b.store("code.job", text, info="for people", version="2")
        await modules.add(P("worded"), code="v = 1", info="for people")
        log = await b.value(P("log"), lambda log: log[-1] == [1, 1])
        assert log == [[0, 1], [0, -1], [1, 1]]


async def test_broken_module_that_an_installed_one_hides_does_not_matter() -> None:
    async with bench("n1") as b:
        await b.desk.set(b.places.module + P("json"), {"code": "("})
        await b.job("import json\nreturn json.dumps(1)")
        assert (await b.state()).result == "1"
