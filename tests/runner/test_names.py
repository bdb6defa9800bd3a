"""What runners, groups and jobs may be called."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc
import pytest

from moat_kv import P, Path, errors, open_client
from moat_kv_runner import run
from tests.runner.bench import Bench, bench

pytestmark = pytest.mark.anyio

GOOD = ["a.b", "a b", "a:b", ":t", "\u00e9", "1.5", "0x1", "any", "\u2603", "x" * 200]
BAD = ["12", "\uff11\uff12", "-", "-x", " ", " x", "x\n", "\0", "\udc80", "x" * 201]


@pytest.mark.parametrize("name", GOOD, ids=ascii)
async def test_odd_names_are_names(name: str) -> None:
    async with bench(name) as b:
        for kind in ("any", "at", "all"):
            await b.job("return _self.node", kind=kind, node=name, path=f"job.{kind}")
        for kind in ("any", "at", "all"):
            state = await b.state(path=f"job.{kind}", kind=kind, node=name)
            assert (state.result, state.node) == (name, name)


@pytest.mark.parametrize("name", BAD, ids=ascii)
async def test_what_can_be_no_name_is_refused(name: str) -> None:
    async with bench() as b, open_client(b.server.url) as client:
        with pytest.raises(errors.BadConfig, match=r"runner\.name"):
            await run(client, name=name)


async def test_name_is_the_same_however_it_was_composed() -> None:
    async with bench("e\u0301") as b:
        await b.job("return _self.node", kind="at", node="\u00e9")
        assert (await b.state(kind="at", node="\u00e9")).result == "\u00e9"


async def runner_of(b: Bench, group: Path, name: str) -> None:
    async def live(*, task_status: anyio.abc.TaskStatus[str]) -> None:
        async with open_client(b.server.url) as client:
            await run(client, group=group, name=name, task_status=task_status)

    await b.tasks.start(live)


def returned(name: str) -> Callable[[Any], bool]:
    return lambda state: bool(state.get("result") == name)


async def test_group_may_have_several_elements() -> None:
    odd = Path("house", 1, "a.b", True)
    async with bench() as b:
        await runner_of(b, P("house.kitchen"), "n1")
        await runner_of(b, odd, "n2")
        await b.code.add("who", code="return _self.node", is_async=True)
        job = {"code": P("who"), "target": time.time()}
        for group, name in ((P("house.kitchen"), "n1"), (odd, "n2")):
            await b.desk.set(b.places.run / "any" + group + P("job"), job)
            state = b.places.state / "any" + group + P("job")
            await b.value(state, returned(name))
            await b.desk.set(b.places.run / "all" + group + P("job"), job)
            state = b.places.state / "all" + group / name + P("job")
            await b.value(state, returned(name))


@pytest.mark.parametrize("kind", ["any", "all"])
async def test_job_whose_state_has_no_room_is_named_and_disturbs_nobody(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    group = P(":.moat.kv.run") / kind / "default"
    async with bench("n1") as b:
        # The longest path that there can be.
        room = 1100
        place = None
        while place is None:
            room -= 1
            try:
                place = group / ("x" * room)
            except errors.BadPath:
                continue
        await b.desk.set(place, {"target": time.time()})
        await b.job("return 1", path="other")
        assert (await b.state(path="other")).result == 1
        assert "cannot be run: bad path" in caplog.text
        assert "Traceback" not in caplog.text
