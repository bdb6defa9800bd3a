"""A job that lacks something waits, says for what, and goes on by itself."""

from __future__ import annotations

from typing import Any

import pytest

from moat_kv import P, errors
from moat_kv.client import error_record
from moat_kv.code import ModuleRoot
from moat_kv_runner import commands, placing, readiness
from tests.runner.bench import bench

pytestmark = pytest.mark.anyio

LASTING = """
    import anyio
    await _client.patch(_P("starts"), "append", [x, _self.fence])
    await anyio.sleep_forever()
"""


WAITING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no-code": ({}, {}, "the job names no code"),
    "missing-code": ({"code": P("later")}, {}, "no procedure later"),
    "does-not-compile": (
        {"code": P("later")},
        {"code": "return (", "is_async": None},
        "later: line 1, column 8: '(' was never closed",
    ),
    "missing-variable": (
        {"code": P("later")},
        {"code": "return x", "vars": ["x"]},
        "missing variable x",
    ),
    "missing-module": (
        {"code": P("later")},
        {"code": "return 1", "requires": ["stored_later"]},
        "missing module stored_later, needed by later",
    ),
    "missing-package": (
        {"code": P("later")},
        {"code": "return 1", "requires": ["py:no-such>=1"]},
        "missing module py:no-such>=1, needed by later; package no-such is not installed",
    ),
    "wrong-entry": ({"code": P("later"), "delay": "long"}, {"code": "return 1"}, "delay: a number"),
    "unknown-attribute": (
        {"code": P("later"), "crno": "* * * * *"},
        {"code": "return 1"},
        "crno: there is no such attribute of a job",
    ),
}


@pytest.mark.parametrize("case", list(WAITING))
async def test_job_waits_with_a_reason_and_goes_on_by_itself(case: str) -> None:
    attributes, stored, reason = WAITING[case]
    async with bench("n1") as b:
        later = b.places.proc + P("later")
        if stored:
            await b.desk.set(later, stored)
        place = await b.job(**attributes)
        state = await b.state(lambda state: state.reason)
        assert (state.reason or "").startswith(f"waiting: {reason}")
        assert (state.node, state.started) == ("n1", None)
        await b.desk.set(later, {"code": "return 'went on'"})
        await commands.change(b.desk, place, code=P("later"), delay=None, crno=None)
        assert (await b.state()).result == "went on"


async def test_module_that_comes_later_lets_the_job_go_on() -> None:
    async with bench("n1") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await b.store("uses", "import stored_z\nreturn stored_z.x", requires=["stored_z"])
        await b.job(code=P("uses"))
        await b.state(lambda state: state.reason)
        await modules.add(P("stored_z"), code="x = 5")
        assert (await b.state()).result == 5


async def test_run_whose_code_is_deleted_waits() -> None:
    async with bench("n1") as b:
        await b.job(LASTING, variables=["x"], data={"x": 1})
        await b.value(P("starts"), lambda starts: len(starts) == 1)
        await b.code.remove("code.job")
        state = await b.state(lambda state: state.reason and state.reason.startswith("waiting"))
        assert not state.running
        await b.store("code.job", LASTING, variables=["x"])
        await b.value(P("starts"), lambda starts: len(starts) == 2)


async def test_raw_code_that_does_not_compile_becomes_an_error_record() -> None:
    async with bench("n1") as b:
        bad = b.places.proc + P("bad")
        module = b.places.module + P("stored_bad")
        await b.desk.set(bad, {"code": "return ("})
        await b.desk.set(module, {"code": "return 1"})
        for path, text in ((bad, "never closed"), (module, "outside function")):
            where = error_record.place("code", path, b.places)
            record = error_record.of_value(await b.value(where))
            assert text in record.message
            await b.desk.set(path, {"code": "x = 1"})
            await b.value(where, lambda value: value["resolved"])


async def test_node_that_lacks_a_package_leaves_the_job_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both nodes are in this process; which of them has the package is told by a patch."""
    has_it = {"n2"}
    asking: list[str] = []

    def fit_of(spec: Any, code: Any) -> bool:
        asking.append(code.client.name)
        return code.client.name in has_it

    def prepare_of(spec: Any, code: Any, modules: Any, **options: Any) -> Any:
        if code.client.name not in has_it:
            raise errors.MissingModule("py:there", "code.job")
        return prepare(spec, code, modules, **options)

    prepare = readiness.prepare
    monkeypatch.setattr(readiness, "is_fit", fit_of)
    monkeypatch.setattr(readiness, "prepare", prepare_of)
    monkeypatch.setattr(placing, "UNFIT_S", 0.1)
    async with bench("n1") as b:
        await b.job("return _self.node")
        state = await b.state(lambda state: state.reason)
        assert (state.node, state.reason) == (
            "n1",
            "waiting: missing module py:there, needed by code.job",
        )
        await b.value(b.claim_path())
        await b.node("n2")
        assert (await b.state()).result == "n2"
        assert set(asking) == {"n1", "n2"}


async def test_job_that_no_node_can_run_is_tried_once_by_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placing, "UNFIT_S", 0.05)
    async with bench("n1", "n2") as b:
        await b.store("needs", "return 1", requires=["py:no-such"])
        await b.job(code=P("needs"))
        first = await b.state(lambda state: state.reason)
        second = await b.state(lambda state: state.node != first.node)
        assert second.reason == first.reason
        await b.gone(b.claim_path())
        await b.store("needs", "return 'now'")
        assert (await b.state()).result == "now"
        # One claim and one state of each node, then those of the run.
        history = await b.desk.history(b.state_path())
        assert [each.value["reason"][:7] for each in history] == [
            "done",
            "running",
            "waiting",
            "waiting",
        ]


async def test_procedure_for_another_event_loop_waits(anyio_backend: str) -> None:
    other = {"asyncio": "trio", "trio": "asyncio"}[anyio_backend]
    async with bench("n1", isolate="inline") as b:
        await b.store("needs", "return 1", backend=other)
        await b.job(code=P("needs"))
        state = await b.state(lambda state: state.reason)
        assert state.reason == f"waiting: needs is for {other}, this runner is on {anyio_backend}"
        await b.store("needs", "return 1", backend=anyio_backend)
        assert (await b.state()).result == 1
