"""A script in a box: what it gets, what it does, and how a test sees all of it."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from moat_kv import P, errors
from moat_kv_runner import messages
from moat_kv_runner.testing import looping
from moat_kv_runner.testing.box import Box, running_box


@pytest.fixture(params=["asyncio", "trio"])
def box(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Box]:
    with running_box(backend=request.param, folder=tmp_path) as made:
        yield made


def test_result_and_names_are_those_of_a_job(box: Box) -> None:
    code = """
import sniffio
await _self.setup_done()
assert _cfg.runner.name == _self.node
_log.info("begun")
names = sorted(name for name in _cls)
with_path = _P("a.b") == _Path("a", "b")
return [x, y, with_path, _digits(1.23456789, 3), _self.fence, "NotGiven" in names,
        sniffio.current_async_library()]
"""
    run = box.run_script(code=code, data={"x": 1}, y=2, variables=["x"])
    assert run.result == [1, 2, True, 1.23, 1, True, box.backend]
    assert run.works
    assert run.is_over
    assert run.messages == []


@pytest.mark.parametrize("is_async", [None, False], ids=["sync", "thread"])
def test_synchronous_script_runs_to_its_end(box: Box, is_async: bool | None) -> None:
    code = "_client.set(_P('b'), _client.get(_P('a')).value + 1)\nreturn 'done'"
    run = box.run_script(code=code, entries={"a": 1}, is_async=is_async)
    assert run.result == "done"
    assert run.entries == {"a": 1, "b": 2}
    assert run.writes == [("b", 2)]


def test_messages_writes_and_broadcasts_are_kept_in_order(box: Box) -> None:
    code = """
await _self.watch(_P("a"), max_depth=-1)
await _self.monitor(_P("bell"))
async for msg in _info:
    if isinstance(msg, _cls.MQTTmsg):
        await _self.send(_P("answer"), msg.value + "!")
        await _client.delete(_P("a.b"))
"""
    run = box.run_script(code=code, entries={"a.b": 1})
    assert [type(each).__name__ for each in run.messages] == [
        "DetachedState",
        "ReadyMsg",
        "ChangeMsg",
        "ReadyMsg",
    ]
    box.set("a.c", 2)
    box.send("bell.door", "ding")
    assert [str(each.path) for each in run.messages_of("ChangeMsg")] == ["a.b", "a.c", "a.b"]
    assert [each.topic for each in run.messages_of(messages.MQTTmsg)] == [P("bell.door")]
    assert run.sent == [("answer", "ding!")]
    assert run.writes == [("a.b", None)]
    assert box.get("a.c") == 2
    box.delete("a.c")
    with pytest.raises(KeyError):
        box.get("a.c")


def test_group_changes_when_the_test_says_so(box: Box) -> None:
    code = "async for msg in _info:\n    await _self.set(_P('seen'), type(msg).__name__)"
    run = box.run_script(code=code, state="complete")
    assert run.messages_of("CompleteState")
    run.tell_state("broken")
    assert run.entries["seen"] == "BrokenState"
    with pytest.raises(ValueError, match="no state of a group"):
        run.tell_state("happy")


def test_time_is_the_scripts_alone_and_passes_only_when_told(box: Box) -> None:
    code = """
import anyio, time
from datetime import datetime, UTC
timer = await _self.timer(3600)
async for msg in _info:
    if isinstance(msg, _cls.TimerMsg):
        await _self.set(_P("at"), [time.time(), datetime.now(UTC).isoformat()])
        await anyio.sleep(1800)
        return time.monotonic()
"""
    box.set_time("2026-03-29T01:30:00+01:00")
    run = box.run_script(code=code)
    run.advance(3599)
    assert run.entries == {}
    run.wait_for("at", within_s=1)
    assert run.entries["at"][1] == "2026-03-29T01:30:00+00:00"
    assert not run.is_over
    run.wait_for(lambda: run.is_over, within_s=3600)
    assert run.result == 5400
    assert box.now() == run.entries["at"][0] + 1800, "no later than it had to be"


def test_what_is_waited_for_in_vain_is_told_with_all_that_happened(box: Box) -> None:
    run = box.run_script(code="await _self.set(_P('a'), 1)\nasync for msg in _info: pass")
    run.wait_for("a", 1)
    with pytest.raises(AssertionError, match=r"not so within 60 s: a is 2\n[^$]*set a 1") as caught:
        run.wait_for("a", 2, within_s=60)
    assert "it still runs" in str(caught.value)
    assert "  a: 1" in str(caught.value)
    with pytest.raises(AssertionError, match="the script still runs"):
        _ = run.result


def test_errors_are_seen_recorded_and_resolved(box: Box) -> None:
    code = """
await _self.record_error(_P("a.b"), message="hot")
await _self.timer(10)
async for msg in _info:
    if isinstance(msg, _cls.TimerMsg):
        await _self.resolve_error(_P("a.b"))
        raise ValueError("in line 6")
"""
    run = box.run_script(code=code)
    assert run.errors == {"a.b": "hot"}
    run.advance(10)
    assert run.errors == {}
    assert isinstance(run.error, ValueError)
    with pytest.raises(ValueError, match="in line 6"):
        _ = run.result
    with pytest.raises(ValueError, match="in line 6"):
        run.wait_for("a")


def test_error_that_nobody_looked_at_fails_the_test(tmp_path: pathlib.Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        running_box(folder=tmp_path) as box,
    ):
        box.run_script(code="1 / 0")


def test_failed_test_is_not_hidden_by_the_scripts_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyError, match="nothing"), running_box(folder=tmp_path) as box:
        box.get(str(box.run_script(code="1 / 0", entries={}).entries or "nothing"))


def test_stopped_script_closes_its_contexts_in_virtual_time(box: Box) -> None:
    code = """
import anyio
from contextlib import asynccontextmanager
@asynccontextmanager
async def valve():
    yield
    await anyio.sleep(2)
    await _self.set(_P("valve"), "closed")
await _self.open_context(valve())
async for msg in _info: pass
"""
    run = box.run_script(code=code)
    run.stop()
    assert run.is_over
    assert run.entries == {"valve": "closed"}
    assert run.error is None


def test_modules_are_loaded_and_live_by_the_same_clock(box: Box, tmp_path: pathlib.Path) -> None:
    (tmp_path / "clocks.py").write_text("import time\ndef now():\n    return time.time()\n")
    (tmp_path / "x.py").write_text("import boxed.clocks\nreturn boxed.clocks.now()")
    modules = {"boxed.clocks": "clocks.py"}
    for requires in ([], ["boxed.clocks"]):
        assert box.run_script("x.py", modules=modules, requires=requires).result == box.now()


def test_several_scripts_share_a_box_and_each_tells_its_own(box: Box) -> None:
    watching = "await _self.watch(_P('a'))\nasync for msg in _info: pass"
    one = box.run_script(code=watching)
    other = box.run_script(code="await _self.set(_P('a'), 5)")
    assert other.result is None
    assert other.writes == [("a", 5)]
    assert one.writes == []
    assert [each.value for each in one.messages_of("ChangeMsg")] == [5]


def test_script_that_cannot_run_is_refused(box: Box) -> None:
    with pytest.raises(errors.BadCode, match="line 1"):
        box.run_script(code="return (")
    with pytest.raises(errors.MissingVariable):
        box.run_script(code="return x", variables=["x"])
    with pytest.raises(TypeError, match="a file, or code"):
        box.run_script()
    with pytest.raises(FileNotFoundError):
        box.run_script("nowhere.py")


def test_script_that_blocks_is_told_with_its_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "go").touch()
    code = """
import os, time
await _self.timer(1)
async for msg in _info:
    while isinstance(msg, _cls.TimerMsg) and os.path.exists(stop):
        time.sleep(0.01)  # here
"""
    with running_box(folder=tmp_path) as box:
        run = box.run_script(code=code, stop=str(tmp_path / "go"))
        monkeypatch.setattr(looping, "LIMIT_S", 1.0)
        with pytest.raises(AssertionError, match="blocks the event loop") as caught:
            run.advance(1)
    (tmp_path / "go").unlink()
    assert "time.sleep(0.01)  # here" in str(caught.value) or "os.path" in str(caught.value)
