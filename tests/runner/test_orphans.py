"""Children whose runner is killed, or frozen: none outlives it, nor its session."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time

import anyio
import pytest

from moat_kv import P
from moat_kv_runner.children import processes
from tests.runner.bench import GROUP, LIMIT_S, bench
from tests.runner.test_children import HELD, gone, is_alive, parent
from tests.runner.test_node_process import process

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_async", [True, None, False], ids=["async", "quick", "thread"])
async def test_killed_runner_leaves_no_process_behind(
    is_async: bool | None, anyio_backend: str
) -> None:
    async with bench() as b:
        async with process(b, "n1", anyio_backend, "process") as node:
            await b.job(HELD.format(wait="await " if is_async else ""), is_async=is_async)
            child, keeper, daemon = await b.value(P("pids"))
            forkserver = parent(keeper)
            assert forkserver != node.pid
            node.kill()
            await gone(child, daemon, keeper, forkserver)


async def test_frozen_runner_has_no_child_any_more_when_its_session_is_over(
    anyio_backend: str,
) -> None:
    async with bench() as b:
        async with process(b, "n1", anyio_backend, "process", "3") as node:
            await b.job(HELD.format(wait=""), is_async=None)
            child, _, daemon = await b.value(P("pids"))
            began = time.monotonic()
            os.kill(node.pid, signal.SIGSTOP)
            try:
                await b.gone(b.claim_path())
                assert not is_alive(child), "the claim is nobody's before its child has ended"
                assert not is_alive(daemon)
                # The time to live, less a third of it, which may pass between two pings.
                assert time.monotonic() - began > 1
            finally:
                os.kill(node.pid, signal.SIGCONT)
            pids = await b.value(P("pids"), lambda pids: pids[0] != child)
            assert is_alive(pids[0])


async def test_runner_that_is_frozen_for_a_short_time_keeps_its_child(anyio_backend: str) -> None:
    async with bench() as b:
        async with process(b, "n1", anyio_backend, "process", "20") as node:
            await b.job(HELD.format(wait=""), is_async=None)
            child, _, daemon = await b.value(P("pids"))
            os.kill(node.pid, signal.SIGSTOP)
            await anyio.sleep(1)
            os.kill(node.pid, signal.SIGCONT)
            await anyio.sleep(1)
            assert is_alive(child)
            assert is_alive(daemon)


LOG = """
    import anyio
    while True:
        await _client.patch(_P("log") / name, "append", _self.fence)
        await anyio.sleep(0.02)
"""


def _is_above(fence: int, log: list[int]) -> bool:
    return log[-1] > fence


def _is_longer(size: int, log: list[int]) -> bool:
    return len(log) > size


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_runners_that_wake_after_their_sessions_write_nothing_more(
    anyio_backend: str,
) -> None:
    names = ["a", "b", "c", "d"]
    async with bench() as b, contextlib.AsyncExitStack() as stack:
        frozen = [
            await stack.enter_async_context(process(b, name, anyio_backend, "process", "1.5"))
            for name in ("n1", "n2")
        ]
        for name in names:
            await b.job(LOG, path=name, data={"name": name})
        before = {name: (await b.value(P("log") / name))[0] for name in names}
        for node in frozen:
            node.send_signal(signal.SIGSTOP)
        try:
            await b.node("n3")
            for name in names:
                await b.value(P("log") / name, functools.partial(_is_above, before[name]))
        finally:
            for node in frozen:
                node.send_signal(signal.SIGCONT)
        # Both are back under new sessions, and their former jobs go on elsewhere meanwhile.
        group = b.places.group + GROUP
        async with b.desk.watch_group(group) as members:
            with anyio.fail_after(LIMIT_S):
                async for seen in members:
                    if seen is not None and {"n1", "n2", "n3"} <= seen.keys():
                        break
        for name in names:
            size = len((await b.desk.get(P("log") / name)).value)
            log = await b.value(P("log") / name, functools.partial(_is_longer, size + 10))
            assert log == sorted(log), "what an older claim wrote comes before what a newer one did"
            assert len(set(log)) > 1


def test_as_many_processes_are_looked_for_as_will_do() -> None:
    """One that forks faster than it can be read would keep its keeper from killing it."""
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            started = stack.enter_context(subprocess.Popen(["sleep", "60"]))
            stack.callback(started.kill)
        assert len(processes.descendants(os.getpid(), at_most=3)) == 3
        assert len(processes.descendants(os.getpid())) >= 5
