"""One run: its names and variables, where it runs, and how it may fail."""

from __future__ import annotations

import pathlib
import threading

import anyio
import pytest

from moat_kv import P
from moat_kv.client import error_record
from moat_kv_runner import commands
from tests.runner.bench import LIMIT_S, bench

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]

#: What only a script in the runner's own process can do, or what the test patches there.
ONLY_INLINE = pytest.mark.parametrize("both_ways", ["inline"], indirect=True)

VARIABLES = """
    return [a, b, c, d.x, d.y, _cfg.runner.name]
"""


async def test_variables_come_from_data_before_default_and_injected_names_win() -> None:
    async with bench("n1") as b:
        default = {"a": 1, "b": 1, "d": {"x": 1, "y": 1}, "_cfg": 1}
        await b.store("vars", VARIABLES, variables=["a", "b", "_cfg"], default=default)
        await b.job(code=P("vars"), data={"b": 2, "c": 3, "d": {"y": 2}, "_cfg": 2})
        assert (await b.state()).result == [1, 2, 3, 1, 2, "n1"]


@pytest.mark.parametrize("is_async", [None, False], ids=["quick", "thread"])
async def test_synchronous_code_runs_in_a_thread_with_a_blocking_client(
    is_async: bool | None,
) -> None:
    text = """
        import threading
        _client.set(_P("a.b"), _client.get(_P("a.in")).value + 1)
        names = sorted(name for name in globals() if name[0] == "_" and name[1] != "_")
        return names, threading.get_ident(), [row.value for row in _client.get_tree(_P("a"))]
    """
    async with bench("n1") as b:
        await b.desk.set(P("a.in"), 1)
        await b.job(text, is_async=is_async)
        names, thread, rows = (await b.state()).result
        assert names == sorted(["_cfg", "_client", "_cls", "_digits", "_log", "_P", "_Path"])
        assert thread != threading.get_ident()
        assert sorted(rows) == [1, 2]


LEFT_BEHIND = """
    import pathlib, time
    folder = pathlib.Path(folder)
    _client.set(_P("thread.begun"), 1)
    while not (folder / "gone").exists():
        time.sleep(0.01)
    try:
        _client.set(_P("thread.late"), 1)
    except BaseException as exc:
        (folder / "result").write_text(type(exc).__name__)
"""


@ONLY_INLINE
async def test_thread_that_does_not_end_is_left_behind_and_writes_nothing(
    tmp_path: pathlib.Path,
) -> None:
    async with bench("n1") as b:
        place = await b.job(
            LEFT_BEHIND, is_async=False, variables=["folder"], data={"folder": str(tmp_path)}
        )
        await b.value(P("thread.begun"))
        await commands.disable(b.desk, place)
        await b.gone(b.claim_path())
        (tmp_path / "gone").touch()
        with anyio.fail_after(LIMIT_S):
            while not (tmp_path / "result").exists():
                await anyio.sleep(0.02)
        assert "value" not in await b.desk.get(P("thread.late"))


FAILING: dict[str, tuple[str, str, str | None]] = {
    "exception": ("\n\nraise KeyError('x')", "KeyError: 'x'", "line 3, in procedure"),
    "exit": ("import sys\nsys.exit(0)", "the script called sys.exit(0)", "sys.exit(0)"),
    "base-exception": ("class E(BaseException): pass\nraise E('odd')", "E: odd", "raise E"),
    "result": ("return object()", "object", None),
    "group": ("raise ExceptionGroup('g', [OSError('x')])", "OSError: x", None),
    "big-result": ("return b'x' * 2_000_000", "the result has 2000005 bytes", None),
}


@pytest.mark.parametrize("is_async", [True, None, False], ids=["async", "quick", "thread"])
@pytest.mark.parametrize("case", list(FAILING))
async def test_failing_run_is_recorded_with_its_stored_source(
    case: str, is_async: bool | None
) -> None:
    text, message, trace = FAILING[case]
    async with bench("n1") as b:
        place = await b.job(text, is_async=is_async, delay=1000)
        state = await b.state()
        assert state.backoff == 1
        assert state.reason is not None
        assert state.reason.startswith("failed: ")
        assert message in state.reason
        record = await error_record.find(b.desk, "run", place)
        assert record is not None
        assert message in record.message
        seen = record.nodes["n1"]
        if trace is not None:
            assert trace in (seen.trace or "")
        if case == "exception":
            assert "raise KeyError('x')" in (seen.trace or "")
            assert "moat_kv_runner" not in (seen.trace or ""), "the runner's frames are left out"


async def test_script_that_is_cancelled_from_within_fails() -> None:
    text = """
        import asyncio, sniffio
        if sniffio.current_async_library() == "trio":
            return "only asyncio lets a script do that"
        other = asyncio.ensure_future(asyncio.sleep(100))
        asyncio.get_running_loop().call_soon(other.cancel)
        await other
    """
    async with bench("n1") as b:
        await b.job(text, delay=1000)
        state = await b.state()
        expected = "something that the script waited for was cancelled"
        assert state.result or expected in (state.reason or "")


async def test_stdout_of_a_failing_job_does_not_matter_to_others() -> None:
    async with bench("n1") as b:
        for n in range(5):
            await b.job("raise RuntimeError", path=f"bad.n{n}", delay=0.01)
        await b.job("return 'fine'", path="good")
        assert (await b.state(path="good")).result == "fine"


async def test_script_that_cancels_itself_has_no_result() -> None:
    async with bench("n1") as b:
        await b.job("import anyio\n_self.cancel()\nawait anyio.sleep(1)\nreturn 1")
        state = await b.state()
        assert (state.result, state.reason, state.backoff) == (None, "done", 0)
