"""Scripts that do what no script should: they fail alone, and what they do is said."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import anyio
import pytest

from moat_kv import P, Path
from moat_kv.client import error_record
from moat_kv.code import ModuleRoot
from moat_kv_runner import admin, commands, running
from tests.runner.bench import LIMIT_S, Bench, bench

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]

#: What only a script in the runner's own process can do, or what the test patches there.
ONLY_INLINE = pytest.mark.parametrize("both_ways", ["inline"], indirect=True)

#: What a script does, and what is said of it.
ODD = {
    "text-raises": (
        "class E(Exception):\n  def __str__(self): raise OSError\nraise E",
        "E: its text cannot be made (OSError)",
    ),
    "text-exits": (
        "class E(Exception):\n  def __str__(self): raise SystemExit\nraise E",
        "E: its text cannot be made (SystemExit)",
    ),
    "text-with-surrogates": ("raise ValueError('x\\udc80')", "ValueError: x\\udc80"),
    "result-too-deep": (
        "r = 1\nfor _ in range(64): r = [r]\nreturn r",
        "deeper than 64 containers",
    ),
    "result-holds-itself": ("r = []\nr.append(r)\nreturn r", "deeper than 64 containers"),
    "result-with-odd-keys": ("return {(1,): 1}", "a mapping's key is an array"),
    "result-with-many-keys": ("return {n: n for n in range(20_000)}", "10000 numbers as keys"),
    "result-that-raises": (
        "class D(dict):\n  def items(self): raise OSError('no')\nreturn D(a=1)",
        "OSError: no",
    ),
    "interrupt": ("raise KeyboardInterrupt", "the script raised KeyboardInterrupt"),
    "generator-exit": ("raise GeneratorExit", "the script raised GeneratorExit"),
    "several-errors": (
        "raise ExceptionGroup('g', [OSError('x'), KeyError('y')])",
        "2 errors: OSError: x; KeyError: 'y'",
    ),
    "error-with-much-data": ("await _self.error(message='m', data='x' * 3_000_000)", "m"),
    "error-with-endless-data": ("d = {}\nd['d'] = d\nawait _self.error(message='m', data=d)", "m"),
    "error-with-surrogates": ("await _self.error(message='m\\udc80')", "m\\udc80"),
}


@pytest.mark.parametrize("case", list(ODD))
async def test_odd_failure_is_recorded_and_backs_off(case: str) -> None:
    text, message = ODD[case]
    async with bench("n1") as b:
        place = await b.job(text, delay=1000)
        state = await b.state()
        assert state.backoff == 1
        assert state.reason is not None
        assert message in state.reason
        record = await error_record.find(b.desk, "run", place)
        assert record is not None
        assert message in record.message
        await b.job("return 'fine'", path="other")
        assert (await b.state(path="other")).result == "fine"


STUBBORN = """
    import anyio, pathlib, time
    folder, give_up_at = pathlib.Path(folder), time.monotonic() + 40
    await _client.patch(_P("starts"), "append", _self.node)
    (folder / "begun").touch()
    while not (folder / "gone").exists() and time.monotonic() < give_up_at:
        try:
            await anyio.sleep(0.02)
        except BaseException:
            await anyio.lowlevel.cancel_shielded_checkpoint()
    try:
        with anyio.CancelScope(shield=True):
            await _client.set(_P("late"), _self.node)
    except BaseException as exc:
        (folder / "result").write_text(type(exc).__name__)
"""


async def stubborn(b: Bench, folder: pathlib.Path, **facts: str) -> None:
    await b.job(STUBBORN, variables=["folder"], data={"folder": str(folder)}, **facts)  # type: ignore[arg-type]
    await b.value(P("starts"))
    # Others may see its write before it is answered, and until then it can be cancelled.
    with anyio.fail_after(LIMIT_S):
        while not (folder / "begun").exists():
            await anyio.sleep(0.02)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "STOP_S", 0.3)


@pytest.mark.usefixtures("hasty")
@ONLY_INLINE
async def test_script_that_does_not_end_when_it_is_stopped_keeps_its_claim_and_it_is_said(
    tmp_path: pathlib.Path,
) -> None:
    async with bench("n1", "n2") as b:
        await stubborn(b, tmp_path)
        place = commands.job_path(b.places, "any", P("default"), P("job"))
        await commands.disable(b.desk, place)
        state = await b.state(lambda state: state.reason != "running")
        assert state.reason == "stopping: its script does not end"
        assert state.running
        await commands.enable(b.desk, place)
        await b.job("return 1", path="other")
        await b.state(path="other")
        assert len(await b.get("starts")) == 1, "nobody begins it while it goes on"
        (tmp_path / "gone").touch()
        await b.value(P("starts"), lambda starts: len(starts) == 2)
        await b.state(lambda state: state.reason == "done")


@pytest.mark.usefixtures("hasty")
@ONLY_INLINE
async def test_script_that_does_not_end_with_its_session_is_refused_and_holds_nothing_up(
    tmp_path: pathlib.Path,
) -> None:
    async with bench() as b:
        node = await b.node("n1")
        await stubborn(b, tmp_path)
        await b.job("import anyio\nawait anyio.sleep_forever()", path="other")
        before = await b.state(lambda state: state.running, path="other")
        b.end_session(node)
        after = await b.state(
            lambda state: state.running and state.fence != before.fence, path="other"
        )
        assert after.node == "n1"
        await b.node("n2")
        await b.value(P("starts"), lambda starts: starts == ["n1", "n2"])
        (tmp_path / "gone").touch()
        with anyio.fail_after(LIMIT_S):
            while not (tmp_path / "result").exists():
                await anyio.sleep(0.02)
        assert (tmp_path / "result").read_text() == "StaleFence"


@pytest.mark.usefixtures("hasty")
@ONLY_INLINE
async def test_script_that_does_not_end_is_told_of_when_its_runner_ends(
    tmp_path: pathlib.Path,
) -> None:
    async with bench() as b:
        told: list[tuple[str, bool]] = []
        tree = b.server.server.store.tree

        def on_stuck(jobs: Sequence[Path]) -> None:
            claim = tree.head(b.claim_path(kind="at"))
            has_claim = claim is not None and claim.value is not None
            told.extend((str(job), has_claim) for job in jobs)

        node = await b.node("n1", on_stuck=on_stuck)
        await stubborn(b, tmp_path, kind="at")
        node.scope.cancel()
        state = await b.state(lambda state: state.reason != "running", kind="at")
        assert state.reason == "its runner was stopped"
        with anyio.fail_after(LIMIT_S):
            while not told:
                await anyio.sleep(0.02)
        assert told == [(":.moat.kv.run.at.n1.default.job", True)], "nobody else may begin before"
        (tmp_path / "gone").touch()
        with anyio.fail_after(LIMIT_S):
            await node.ended.wait()


@pytest.mark.parametrize("is_async", [True, None, False], ids=["async", "quick", "thread"])
async def test_module_that_never_loads_holds_up_its_own_job_only(
    is_async: bool | None, tmp_path: pathlib.Path
) -> None:
    text = f"""
import pathlib, time
pathlib.Path({str(tmp_path)!r}, "begun").touch()
while not pathlib.Path({str(tmp_path)!r}, "gone").exists():
    time.sleep(0.02)
"""
    async with bench("n1") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("never_loads"), code=text)
        await b.code.add("code.job", code="return 1", is_async=is_async, requires=["never_loads"])
        place = await b.job(code=P("code.job"))
        with anyio.fail_after(LIMIT_S):
            while not (tmp_path / "begun").exists():
                await anyio.sleep(0.02)
        await b.job("return 2", path="other")
        assert (await b.state(path="other")).result == 2
        await commands.disable(b.desk, place)
        assert (await b.state()).reason == "stopped"
        (tmp_path / "gone").touch()


HANGING = """
    import anyio, contextlib
    @contextlib.asynccontextmanager
    async def manager():
        {enter}
        yield
        {leave}
    await _client.set(_P("begun"), 1)
    await _self.open_context(manager())
    await _client.set(_P("entered"), 1)
    {then}
"""


async def test_context_that_is_never_entered_can_be_stopped() -> None:
    text = HANGING.format(enter="await anyio.sleep_forever()", leave="pass", then="pass")
    async with bench("n1") as b:
        place = await b.job(text)
        await b.value(P("begun"))
        await commands.disable(b.desk, place)
        assert (await b.state()).reason == "stopped"


@pytest.mark.parametrize("then", ["return 1", "await anyio.sleep_forever()"], ids=["end", "stop"])
@ONLY_INLINE
async def test_context_that_is_never_left_is_cancelled_after_a_while(
    then: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admin, "CLOSE_S", 0.2)
    # What else could end it would do so later than this test waits for anything.
    monkeypatch.setattr(running, "STOP_S", 2 * LIMIT_S)
    text = HANGING.format(enter="pass", leave="await anyio.sleep_forever()", then=then)
    async with bench("n1") as b:
        place = await b.job(text)
        await b.value(P("entered"))
        if "sleep" in then:
            await commands.disable(b.desk, place)
            assert (await b.state()).reason == "stopped"
        else:
            assert (await b.state()).result == 1
        assert "is not left after 0.2 s" in caplog.text


async def test_groups_state_is_told_once_for_each_change() -> None:
    text = """
        states = []
        async for msg in _info:
            if not isinstance(msg, _cls.RunnerMsg):
                states.append([type(msg).__name__, len(msg.msg.members)])
                if len(msg.msg.members) == 3:
                    return states
                await _client.set(_P("seen"), states)
    """
    async with bench("n1") as b:
        await b.job(text, kind="at")
        await b.value(P("seen"), lambda seen: len(seen) == 1)
        await b.node("n2")
        await b.value(P("seen"), lambda seen: len(seen) == 2)
        await b.node("n3")
        states = (await b.state(kind="at")).result
        assert states == [["DetachedState", 1], ["CompleteState", 2], ["CompleteState", 3]]
