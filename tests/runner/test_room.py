"""Jobs go to nodes that suit and have room, and off those that are drained."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest

from moat_kv import P
from moat_kv_runner import commands, serving
from moat_kv_runner.node_facts import NodeFacts
from tests.runner.bench import GROUP, LIMIT_S, Bench, bench

pytestmark = pytest.mark.anyio

STAY = """
    import anyio
    await _client.set(_P("on") / _self.path[-1], _self.node)
    await anyio.sleep_forever()
"""


async def _holders(b: Bench) -> Counter[str]:
    claims = b.places.claim + P("any.default")
    return Counter([each.value["node"] async for each in b.desk.get_tree(claims)])


async def _until_held(b: Bench, expected: dict[str, int]) -> None:
    with anyio.fail_after(LIMIT_S):
        while (found := await _holders(b)) != expected:
            assert found is not None
            await anyio.sleep(0.05)


async def test_job_goes_to_a_node_that_has_what_it_requires() -> None:
    async with bench("n1") as b:
        await b.node("n2", facts=NodeFacts(tags=frozenset({"1wire"})))
        for nth in range(4):
            await b.job(STAY, path=f"job{nth}", require=["1wire"])
        await _until_held(b, {"n2": 4})
        place = await b.job(STAY, path="other", require=["gpio"])
        await b.job("return 1", path="last")
        await b.state(path="last")
        assert "value" not in await b.desk.get(b.claim_path("other"))
        await commands.change(b.desk, place, require=[])
        await b.value(P("on.other"))


async def test_run_ends_where_the_node_does_not_suit_any_more() -> None:
    async with bench("n1") as b:
        await b.node("n2", facts=NodeFacts(tags=frozenset({"1wire"}), weight=0.0))
        place = await b.job(STAY)
        await b.value(P("on.job"), lambda node: node == "n1")
        await commands.change(b.desk, place, require=["1wire"])
        await b.value(P("on.job"), lambda node: node == "n2")


async def test_jobs_spread_by_weight() -> None:
    async with bench() as b:
        await b.node("n1")
        await b.node("n2", facts=NodeFacts(weight=3.0))
        for nth in range(8):
            await b.job(STAY, path=f"job{nth}")
            await b.value(P("on") / f"job{nth}")
        await _until_held(b, {"n1": 2, "n2": 6})


async def test_drained_node_leaves_its_jobs_to_others_and_they_go_on() -> None:
    async with bench("n1", "n2") as b:
        for nth in range(4):
            await b.job(STAY, path=f"job{nth}")
            # Else it may be taken by who has not seen yet who has the one before.
            await b.value(P("on") / f"job{nth}")
        await b.job("return 1", path="later", target=3600.0)
        await _until_held(b, {"n1": 2, "n2": 2})
        group = b.places.run / "any" + GROUP
        await b.desk.set(group, {"drained": ["n1"]})
        await _until_held(b, {"n2": 4})
        for nth in range(4):
            await b.value(P("on") / f"job{nth}", lambda node: node == "n2")
            state = await b.state(lambda state: state.running, path=f"job{nth}")
            assert state.backoff == 0
        await b.job(STAY, path="new")
        await _until_held(b, {"n2": 5})
        await b.desk.set(group, {})
        await b.job(STAY, path="newer")
        await _until_held(b, {"n2": 5, "n1": 1})


async def test_jobs_are_spread_anew_when_somebody_asks() -> None:
    async with bench("n1") as b:
        for nth in range(4):
            await b.job(STAY, path=f"job{nth}")
        await b.job(STAY, path="bound", require=[])
        await _until_held(b, {"n1": 5})
        await b.node("n2")
        await b.desk.send(serving.rebalance_topic(b.places, GROUP), None)
        await _until_held(b, {"n1": 3, "n2": 2})
        claims = b.desk.get_tree(b.places.claim + P("any.default"))
        for path, holder in [(each.path, each.value["node"]) async for each in claims]:
            await b.value(P("on") + path, holder.__eq__)
