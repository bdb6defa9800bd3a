"""What stops a run and begins it anew: changes of its data, its code, its modules; the command."""

from __future__ import annotations

import time

import pytest

from moat_kv import P, errors
from moat_kv.code import ModuleRoot
from moat_kv_runner import commands
from tests.runner.bench import bench

pytestmark = pytest.mark.anyio

LASTING = """
    import anyio
    await _client.patch(_P("starts"), "append", [x, _self.fence])
    await anyio.sleep_forever()
"""


async def test_changing_data_restarts_a_run() -> None:
    async with bench("n1") as b:
        place = await b.job(LASTING, variables=["x"], data={"x": 1})
        await b.value(P("starts"), lambda starts: len(starts) == 1)
        await commands.change(b.desk, place, info="does not matter", delay=3, target=time.time())
        await commands.change(b.desk, place, data={"x": 2})
        starts = await b.value(P("starts"), lambda starts: len(starts) == 2)
        assert [x for x, _fence in starts] == [1, 2]
        assert starts[0][1] == starts[1][1], "the claim is kept"
        assert (await b.state(lambda state: state.running)).reason == "running"


async def test_changing_code_restarts_its_jobs_and_no_others() -> None:
    async with bench("n1") as b:
        await b.job(LASTING, variables=["x"], data={"x": "this"})
        await b.job(LASTING, path="other", variables=["x"], data={"x": "other"})
        await b.value(P("starts"), lambda starts: len(starts) == 2)
        await b.store("code.job", LASTING + "    # changed", variables=["x"])
        starts = await b.value(P("starts"), lambda starts: len(starts) == 3)
        assert starts[2][0] == "this"


async def test_changing_what_people_read_of_code_restarts_nothing() -> None:
    async with bench("n1") as b:
        await b.job(LASTING, variables=["x"], data={"x": "this"})
        await b.value(P("starts"), lambda starts: len(starts) == 1)
        place = b.places.proc + P("code.job")
        stored = (await b.desk.get(place)).value
        await b.desk.set(place, {**stored, "info": "what it is for"})
        await b.desk.set(place, stored)
        # Seen after these by the same runner, and run at once.
        await b.job("return 1", path="other")
        await b.state(path="other")
        assert len(await b.get("starts")) == 1
        await b.desk.set(place, {**stored, "default": {"y": 1}})
        await b.value(P("starts"), lambda starts: len(starts) == 2)


async def test_pointing_to_other_code_restarts_a_run() -> None:
    async with bench("n1") as b:
        place = await b.job(LASTING, variables=["x"], data={"x": 1})
        await b.value(P("starts"))
        await b.store("forty.two", "return 42", is_async=None)
        await commands.change(b.desk, place, code=P("forty.two"))
        assert (await b.state()).result == 42


async def test_restart_stops_and_starts() -> None:
    async with bench("n1") as b:
        place = await b.job(LASTING, variables=["x"], data={"x": 1})
        await b.value(P("starts"), lambda starts: len(starts) == 1)
        await commands.restart(b.desk, place)
        await b.value(P("starts"), lambda starts: len(starts) == 2)
        other = await b.job("import time\nreturn time.time()", path="other")
        first = (await b.state(path="other")).result
        await commands.restart(b.desk, other)
        await b.state(lambda state: state.result and state.result > first, path="other")


async def test_commands_need_a_job() -> None:
    async with bench() as b:
        place = commands.job_path(b.places, "any", P("default"), P("nothing"))
        for command in (commands.enable, commands.disable, commands.restart):
            with pytest.raises(errors.NotFound, match="no job"):
                await command(b.desk, place)


async def test_changed_module_restarts_what_needs_it_with_the_new_one() -> None:
    text = """
        import anyio
        import stored_unit
        await _client.patch(_P("starts"), "append", [name, stored_unit.factor()])
        await anyio.sleep_forever()
    """
    async with bench("n1") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("stored_base"), code="value = 1")
        await modules.add(
            P("stored_unit"),
            code="import stored_base\ndef factor(): return stored_base.value",
            requires=["stored_base"],
        )
        await b.store("uses", text, variables=["name"], requires=["stored_unit"])
        await b.job(code=P("uses"), data={"name": "uses"})
        await b.job(
            "import anyio\nawait _client.patch(_P('starts'), 'append', ['other', 0])\n"
            "await anyio.sleep_forever()",
            path="other",
        )
        await b.value(P("starts"), lambda starts: len(starts) == 2)
        await modules.add(P("stored_base"), code="value = 2")
        starts = await b.value(P("starts"), lambda starts: len(starts) == 3)
        assert starts[2] == ["uses", 2]
