"""What a job requires: loaded in order, in order again after a change; else it waits, and says why.

In the runner's own process, and in children.
"""

from __future__ import annotations

import time

import pytest

from moat_kv import NotGiven, P
from moat_kv.code import ModuleRoot
from moat_kv_runner import explaining, node_facts
from moat_kv_runner.job import JobState
from tests.runner.bench import Bench, bench

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]

#: Each module notes when it is loaded, in a list that outlives it where it can.
NOTED = "import builtins\nbuiltins.__dict__.setdefault('_loaded', []).append(__name__)\n"
#: Tells the order in which modules were loaded since the last run, and the value at the bottom.
TELLS = """
    import builtins, anyio, needed_top
    order = builtins.__dict__.pop("_loaded", [])
    await _client.set(_P("seen"), [order, needed_top.x])
    await anyio.sleep_forever()
"""


async def why(b: Bench, state: JobState) -> str:
    """What `moat kv run at job why` says."""
    place = b.places.run + P("any.default.job")
    known = explaining.Known(
        job=(await b.desk.get(place)).value,
        key=place.packed,
        defaults={},
        state=state,
        claim=(await b.desk.get(b.claim_path())).get("value", NotGiven),
        runners={"n1": node_facts.NodeFacts()},
        drained=frozenset(),
        whose="any node of group default",
    )
    return explaining.why(known, time.time()).text


async def test_changed_module_is_loaded_anew_with_all_that_needs_it_in_order() -> None:
    order = ["needed_base", "needed_mid", "needed_top"]
    async with bench("n1") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("needed_base"), code=NOTED + "x = 1")
        mid = NOTED + "import needed_base\nx = needed_base.x"
        await modules.add(P("needed_mid"), code=mid, requires=["needed_base"])
        # It does not import what it requires: the order is that of `requires`, not of imports.
        top = NOTED + "import sys\nx = sys.modules['needed_mid'].x"
        await modules.add(P("needed_top"), code=top, requires=["needed_mid"])
        await b.store("code.job", TELLS, requires=["needed_top"])
        await b.job(code=P("code.job"))
        await b.value(P("seen"), lambda seen: seen == [order, 1])
        await modules.add(P("needed_base"), code=NOTED + "x = 2")
        await b.value(P("seen"), lambda seen: seen == [order, 2])
        await modules.add(P("needed_mid"), code=mid + " * 10", requires=["needed_base"])
        await b.value(P("seen"), lambda seen: seen[1] == 20 and seen[0][-2:] == order[1:])


async def test_cycle_of_required_modules_is_named_and_waited_for() -> None:
    async with bench("n1") as b:
        place = b.places.module
        for name, needs in (("round_a", "round_b"), ("round_b", "round_c"), ("round_c", "round_a")):
            # A raw write: `add` refuses the last of them.
            await b.desk.set(place + P(name), {"code": "x = 1", "requires": [needs]})
        await b.store("code.job", "import round_a\nreturn round_a.x", requires=["round_a"])
        await b.job(code=P("code.job"))
        state = await b.state(lambda state: state.reason)
        assert "round_a -> round_b -> round_c -> round_a" in (state.reason or "")
        assert (state.reason or "").startswith("waiting: ")
        assert "round_a -> round_b" in await why(b, state)
        await b.desk.set(place + P("round_c"), {"code": "x = 1"})
        assert (await b.state()).result == 1


@pytest.mark.parametrize("through", ["procedure", "module"])
async def test_missing_package_is_what_the_job_waits_for(through: str) -> None:
    needs = {"procedure": ["py:no-such>=2"], "module": ["wants_package"]}[through]
    async with bench("n1") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("wants_package"), code="x = 1", requires=["py:no-such>=2"])
        await b.store("code.job", "return 1", requires=needs)
        await b.job(code=P("code.job"))
        state = await b.state(lambda state: state.reason)
        by = {"procedure": "code.job", "module": "wants_package"}[through]
        lack = f"missing module py:no-such>=2, needed by {by}; package no-such is not installed"
        assert state.reason == f"waiting: {lack}"
        assert (state.started, state.backoff) == (None, 0)
        assert lack in await why(b, state)
        await modules.add(P("wants_package"), code="x = 1", requires=["py:anyio>=4"])
        await b.store("code.job", "return 2", requires=["wants_package"])
        assert (await b.state()).result == 2


async def test_module_whose_code_fails_is_the_jobs_failure() -> None:
    async with bench("n1") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("fails_here"), code="y = 1\n1 / 0")
        await b.store("code.job", "return 1", requires=["fails_here"])
        await b.job(code=P("code.job"), delay=1000)
        state = await b.state()
        assert state.reason == "failed: ZeroDivisionError: division by zero"
