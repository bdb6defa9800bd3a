"""Scripts in processes of their own: what they are given, how they end, what holds them."""

from __future__ import annotations

import os
import pathlib
import signal
import textwrap
from typing import Any

import anyio
import pytest

from moat_kv import P
from moat_kv.client import error_record
from moat_kv_runner import commands, running
from moat_kv_runner.children import cgroups
from tests.runner.bench import LIMIT_S, Bench, bench

pytestmark = pytest.mark.anyio

KINDS = pytest.mark.parametrize("is_async", [True, None, False], ids=["async", "quick", "thread"])

SURROUNDINGS = """
    import os, resource, signal, sys, threading
    return {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "group": os.getpgid(0),
        "env": dict(os.environ),
        "here": os.getcwd(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "memory": resource.getrlimit(resource.RLIMIT_DATA)[1],
        "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "is_main": threading.current_thread() is threading.main_thread(),
        "stored": [name for name in sys.modules if name.startswith("stored")],
        "inherited": [
            name for name in ("a.db", "leak") if any(name in at for at in (
                os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{fd}")))
        ],
    }
"""


@KINDS
async def test_child_has_its_own_session_and_nothing_of_its_runner(
    is_async: bool | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the runner")
    with (tmp_path / "leak").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        async with bench("n1", isolate="process") as b:
            limits = {"files": 100, "memory_mb": 300}
            await b.job(SURROUNDINGS, is_async=is_async, env={"MINE": "1"}, limits=limits)
            found = (await b.state()).result
    assert found["pid"] != os.getpid()
    assert found["session"] == found["group"] == found["pid"]
    assert found["env"].pop("MINE") == "1"
    assert set(found["env"]) <= {"PATH", "HOME", "LANG", "TZ", "LC_CTYPE"}
    assert (found["files"], found["memory"], found["core"]) == (100, 300 * 2**20, 0)
    assert found["is_main"] == (is_async is not False)
    assert found["inherited"] == []


@KINDS
async def test_script_is_in_its_control_group_from_its_first_line_on(
    is_async: bool | None,
) -> None:
    text = "return [line for line in open('/proc/self/cgroup') if line.startswith('0::')][0]"
    async with bench("n1", isolate="process") as b:
        await b.job(text, is_async=is_async)
        found = (await b.state()).result
    assert (cgroups.PREFIX in found) == (cgroups.usable_folder() is not None)


ENDS: dict[str, tuple[str, str]] = {
    "exit-at-once": ("os._exit(0)", "ended with exit code 0, in the middle of the script"),
    "exit-code": ("os._exit(3)", "ended with exit code 3"),
    "segfault": ("ctypes.string_at(0)", "crashed (SIGSEGV)"),
    "abort": ("os.abort()", "crashed (SIGABRT)"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "was killed (SIGKILL)"),
    "memory": ("x = bytearray(400 * 2**20)", "MemoryError"),
    "leak": ("x = []\nwhile True: x.append(bytearray(2**20))", "MemoryError"),
    "processor-time": ("while True: pass", "has used 1 s of processor time"),
    "descriptors": ("x = [open('/dev/null') for _ in range(1000)]", "Too many open files"),
    "closes-all": ("time.sleep(0.1)\nos.closerange(3, 1000)\ntime.sleep(60)", "its process "),
    "garbage": ("os.write(3, b'\\0\\0\\0\\1x' * 9)\ntime.sleep(60)", "is not understood"),
    "too-big": ("os.write(3, b'\\x7f' * 90)\ntime.sleep(60)", "is not understood"),
    "recursion": ("def f(): f()\nf()", "RecursionError"),
    "fork-bomb": (
        "while True:\n  try: os.fork()\n  except OSError: pass",
        "more than 20 processes",
    ),
    "shell-bomb": (
        "subprocess.Popen(['sh', '-c', 'f() { f & f; }; f'])\ntime.sleep(60)",
        "more than 20 processes",
    ),
}


@KINDS
@pytest.mark.parametrize("case", list(ENDS))
async def test_end_of_a_child_becomes_the_reason_of_its_run(
    case: str, is_async: bool | None
) -> None:
    text, reason = ENDS[case]
    limits = {"memory_mb": 256, "cpu_s": 1, "files": 64, "processes": 20}
    if "bomb" in case:
        limits["cpu_s"] = 0
    async with bench("n1", isolate="process") as b:
        text = f"import ctypes, os, signal, subprocess, time\n{text}"
        place = await b.job(text, is_async=is_async, delay=1000, limits=limits)
        await b.job("return 'fine'", path="other")
        assert (await b.state(path="other")).result == "fine"
        state = await b.state()
        assert reason in (state.reason or "")
        assert state.backoff == 1
        record = await error_record.find(b.desk, "run", place)
        assert record is not None
        assert reason in record.message


def is_alive(pid: int) -> bool:
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z"


def parent(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def gone(*pids: int, limit_s: float = LIMIT_S) -> None:
    with anyio.fail_after(limit_s):
        while any(is_alive(pid) for pid in pids):
            await anyio.sleep(0.02)


DAEMON = """
    import os, time
    def daemon():
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                os.write(write, str(os.getpid()).encode())
                time.sleep(600)
            os._exit(0)
    read, write = os.pipe()
    daemon()
    os.wait()
    pid = int(os.read(read, 20))
"""


@KINDS
async def test_what_a_script_leaves_behind_is_ended_with_it(is_async: bool | None) -> None:
    async with bench("n1", isolate="process") as b:
        await b.job(DAEMON + "    return pid", is_async=is_async)
        pid = (await b.state()).result
        assert not is_alive(pid), "the run is over when all of it is"


STUBBORN = {
    "cancellation": """
        import anyio
        while True:
            try:
                await anyio.sleep(0.01)
            except BaseException:
                pass
    """,
    "blocked-loop": "import time\ntime.sleep(600)",
    "busy": "while True: pass",
    "ignores-term": """
        import signal, time
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        except ValueError:
            pass  # for a thread
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass
    """,
    "stopped": "import signal, time\nos.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(9)",
    "endless-thread": """
        import threading, time
        def f():
            while True: time.sleep(0.01)
        threading.Thread(target=f).start()
        time.sleep(600)
    """,
}


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "STOP_S", 0.3)


def begun(text: str, *, is_async: bool | None) -> str:
    call = "await _client.set" if is_async else "_client.set"
    return f"import os\n{call}(_P('begun'), os.getpid())\n{textwrap.dedent(text)}"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("case", "is_async"),
    [
        (case, kind)
        for case in STUBBORN
        for kind in (True, None, False)
        if kind or case != "cancellation"
    ],
)
async def test_script_that_does_not_heed_its_end_is_killed(
    case: str, is_async: bool | None
) -> None:
    async with bench("n1", isolate="process") as b:
        place = await b.job(begun(STUBBORN[case], is_async=is_async), is_async=is_async)
        pid = await b.value(P("begun"))
        await commands.disable(b.desk, place)
        assert (await b.state()).reason == "stopped"
        assert not is_alive(pid)
        await commands.enable(b.desk, place)
        await b.value(P("begun"), lambda value: value != pid)


async def test_script_that_is_stopped_can_clean_up() -> None:
    text = """
        import time
        try:
            _client.set(_P("begun"), 1)
            time.sleep(600)
        finally:
            _client.set(_P("cleaned"), 1)
    """
    async with bench("n1", isolate="process") as b:
        place = await b.job(text, is_async=None)
        await b.value(P("begun"))
        await commands.disable(b.desk, place)
        assert (await b.state()).reason == "stopped"
        assert await b.get("cleaned") == 1


AMID = {
    "long-call": "with _client.watch(_P('begun'), max_depth=0) as events: list(events)",
    "many-calls": "_client.get(_P('begun'))",
}


@pytest.mark.parametrize("call", list(AMID.values()), ids=list(AMID))
async def test_script_that_is_stopped_amid_its_calls_can_clean_up(call: str) -> None:
    text = f"""
        try:
            _client.set(_P("begun") / number, number)
            while True:
                {call}
        finally:
            _client.set(_P("cleaned"), number)
    """
    async with bench("n1", isolate="process") as b:
        for number in range(5):
            place = await b.job(text, path=f"j{number}", is_async=None, data={"number": number})
            await b.value(P("begun") / number)
            await commands.disable(b.desk, place)
            assert (await b.state(path=f"j{number}")).reason == "stopped"
            assert await b.get("cleaned") == number


async def test_context_is_left_when_the_job_is_stopped() -> None:
    text = """
        import anyio, contextlib
        @contextlib.asynccontextmanager
        async def manager():
            yield
            await _client.set(_P("left"), 1)
        await _self.open_context(manager())
        await _client.set(_P("begun"), 1)
        await anyio.sleep_forever()
    """
    async with bench("n1", isolate="process") as b:
        place = await b.job(text)
        await b.value(P("begun"))
        await commands.disable(b.desk, place)
        assert (await b.state()).reason == "stopped"
        assert await b.get("left") == 1


MEDDLING = {
    "directory": "os.chdir('/tmp'); os.umask(0o777)",
    "signals": "import signal\nfor n in (1, 2, 10, 15, 17): signal.signal(n, signal.SIG_IGN)",
    "patches": "anyio.sleep = anyio.Event = anyio.create_task_group = None",
    "closes-connection": "_client.shared.link.close()",
    "closes-output": "os.close(1); os.close(2); print('x')",
    "closes-streams": "import sys\nsys.stdout.close(); sys.stderr.close()",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))",
    "watches": "for n in range(50): await _self.watch(_P(':'), max_depth=-1)",
    "environment": "os.environ.clear()",
    "exit-handler": "import atexit, time\natexit.register(time.sleep, 600)",
    "no-exit": "os._exit = lambda code: None",
    "threads": "import threading, time\n"
    "for n in range(20): threading.Thread(target=time.sleep, args=(600,)).start()",
}


@pytest.mark.parametrize("case", list(MEDDLING))
async def test_meddling_with_its_own_process_is_felt_by_nobody_else(case: str) -> None:
    handlers = [signal.getsignal(number) for number in range(1, 18)]
    here, sleep = os.getcwd(), anyio.sleep  # noqa: PTH109
    async with bench("n1", isolate="process") as b:
        await b.job(f"import anyio, os\n{MEDDLING[case]}", path="meddler", delay=1000)
        await b.job("return 'fine'", path="other")
        assert (await b.state(path="other")).result == "fine"
        await b.state(path="meddler")
        await b.job("return 'fine'", path="later")
        assert (await b.state(path="later")).result == "fine"
        assert (os.getcwd(), anyio.sleep) == (here, sleep)  # noqa: PTH109
        assert [signal.getsignal(number) for number in range(1, 18)] == handlers


HELD = (
    DAEMON
    + """
    {wait}_client.set(_P("pids"), [os.getpid(), os.getppid(), pid])
    time.sleep(600)
"""
)


async def held(b: Bench, **facts: Any) -> list[int]:
    await b.job(HELD.format(wait=""), is_async=None, **facts)
    pids: list[int] = await b.value(P("pids"))
    return pids


async def test_killed_keeper_leaves_nothing_behind() -> None:
    async with bench("n1", isolate="process") as b:
        child, keeper, daemon = await held(b, delay=1000)
        os.kill(keeper, signal.SIGKILL)
        await gone(child, daemon)
        state = await b.state()
        assert "was killed with its keeper" in (state.reason or "")


async def test_killed_fork_server_harms_no_child_and_is_replaced() -> None:
    async with bench("n1", isolate="process") as b:
        child, keeper, daemon = await held(b, delay=1000)
        os.kill(parent(keeper), signal.SIGKILL)
        await b.job("return 1", path="other")
        assert (await b.state(path="other")).result == 1
        assert is_alive(child)
        assert is_alive(daemon)
    await gone(child, daemon, keeper)


async def test_client_that_ends_ends_its_children() -> None:
    async with bench("n1", isolate="process") as b:
        pids = await held(b)
    await gone(*pids)


async def test_stale_child_is_refused_whatever_it_sends() -> None:
    """The server guards the line, though the script takes the fence from its own writes."""
    text = """
        import anyio
        from moat_kv import errors
        plain = type(_client).__mro__[1](_client.shared)
        await plain.set(_P("before"), _self.fence)
        await _client.delete(_P(":.moat.kv.claim.any.default.job"))
        try:
            with anyio.CancelScope(shield=True):
                await plain.set(_P("after"), 1)
        except errors.StaleFence:
            print("refused", flush=True)
            raise
    """
    async with bench("n1", isolate="process") as b:
        await b.job(text, delay=1000)
        first = await b.value(P("before"))
        await b.value(P("before"), lambda fence: fence > first)
        assert "value" not in await b.desk.get(P("after"))
