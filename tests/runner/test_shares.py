"""Jobs that share a child: one interpreter, several runs, each with a line of its own."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from moat_kv import P
from moat_kv.code import ModuleRoot
from moat_kv_runner import commands, running
from moat_kv_runner.kept import asking
from tests.runner.bench import bench
from tests.runner.test_children import gone, is_alive

pytestmark = pytest.mark.anyio

TELL = """
    import anyio, os, stored_bus
    stored_bus.users.append(_self.path)
    await _client.set(_P("in") + _self.path[-1:], [os.getpid(), len(stored_bus.users)])
    async for msg in _info:
        if isinstance(msg, _cls.CompleteState):
            await _client.set(_P("complete") + _self.path[-1:], 1)
"""


async def test_jobs_of_a_share_run_in_one_interpreter_and_end_apart() -> None:
    async with bench("n1", isolate="process") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("stored_bus"), code="users = []")
        first = await b.job(TELL, path="one", kind="at", share="bus")
        pid, users = await b.value(P("in.one"))
        assert users == 1
        await b.job(TELL, path="two", share="bus")
        assert await b.value(P("in.two")) == [pid, 2]
        await b.job(TELL, path="three", share="other")
        assert (await b.value(P("in.three")))[0] != pid
        await b.node("n2", isolate="process")
        for path in ("complete.one", "complete.two"):
            await b.value(P(path))
        await commands.disable(b.desk, first)
        assert (await b.state(path="one", kind="at")).reason == "stopped"
        assert is_alive(pid)
        await commands.enable(b.desk, first)
        assert (await b.value(P("in.one"), lambda value: value[1] > 1))[0] == pid


async def test_log_records_of_a_share_are_kept_with_their_own_runs() -> None:
    text = """
        import anyio, logging
        _log.info("of %s", _self.path[-1])
        _log.getChild("part").info("a part of %s", _self.path[-1])
        logging.getLogger("bus").warning("of anybody")
        await _client.set(_P("in") + _self.path[-1:], 1)
        await anyio.sleep_forever()
    """
    async with bench() as b:
        node = await b.node("n1", isolate="process")
        for path in ("one", "two"):
            await b.job(text, path=path, share="bus")
            await b.value(P("in") / path)
        async with asking.Desk(
            b.desk, b.places, group=P("default"), kind="any", path=P("one")
        ) as desk:
            with anyio.fail_after(30):
                lines: list[str] = []
                while lines.count("bus: of anybody") < 2:
                    answers = await desk.ask("lines", [node.name])
                    lines = [each["text"] for each in answers["n1"]["lines"]]
        assert lines == ["of one", "a part of one", "bus: of anybody", "bus: of anybody"]


async def test_last_one_of_a_share_ends_its_process() -> None:
    async with bench("n1", isolate="process") as b:
        await b.job("import os\nreturn os.getpid()", share="s")
        pid = (await b.state()).result
        await gone(pid)


async def test_crash_in_a_share_fails_all_that_share_it() -> None:
    text = (
        "import anyio, os\n"
        "await _client.set(_P('pid') / _self.path[-1], os.getpid())\n"
        "await anyio.sleep_forever()"
    )
    async with bench("n1", isolate="process") as b:
        pids = set()
        for path in ("one", "two"):
            await b.job(text, path=path, share="s", delay=1000)
            pids.add(await b.value(P("pid") / path))
        (pid,) = pids
        os.kill(pid, signal.SIGKILL)
        for path in ("one", "two"):
            assert "was killed (SIGKILL)" in ((await b.state(path=path)).reason or "")


async def test_job_that_does_not_end_takes_its_share_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "STOP_S", 0.5)
    stuck = """
        import anyio, time
        with anyio.CancelScope(shield=True):
            await _client.set(_P("stuck"), 1)
        time.sleep(600)
    """
    async with bench("n1", isolate="process") as b:
        text = "import anyio\nawait _client.set(_P('fine'), 1)\nawait anyio.sleep_forever()"
        await b.job(text, path="fine", share="s", delay=1000)
        await b.value(P("fine"))
        place = await b.job(stuck, path="stuck", share="s")
        await b.value(P("stuck"))
        await commands.disable(b.desk, place)
        assert (await b.state(path="stuck")).reason == "stopped"
        assert "another job of its share" in ((await b.state(path="fine")).reason or "")


async def test_share_has_one_environment() -> None:
    text = "import anyio\nawait _client.set(_P('begun'), 1)\nawait anyio.sleep_forever()"
    async with bench("n1", isolate="process") as b:
        await b.job(text, path="one", share="s", env={"A": "1"})
        await b.value(P("begun"))
        await b.job(text, path="two", share="s", env={"A": "2"}, delay=1000)
        assert "another env or other limits" in ((await b.state(path="two")).reason or "")


async def test_synchronous_job_cannot_share() -> None:
    async with bench("n1", isolate="process") as b:
        await b.job("return 1", share="s", is_async=None)
        state = await b.state(lambda state: state.reason)
        assert "share" in (state.reason or "")
        assert "async" in (state.reason or "")
