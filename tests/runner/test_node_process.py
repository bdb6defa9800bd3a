"""Runners as processes: killed, and stopped."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest

from moat_kv import P
from tests.runner import node_process
from tests.runner.bench import LIMIT_S, Bench, bench

pytestmark = pytest.mark.anyio

BEAT = """
    timer = await _self.timer(0.02)
    async for msg in _info:
        if isinstance(msg, _cls.TimerMsg):
            await _self.set(_P("beat"), {"node": _self.node, "fence": _self.fence})
            await timer.run(0.02)
"""


@asynccontextmanager
async def process(
    b: Bench, name: str, backend: str, *more: str, url: str | None = None
) -> AsyncIterator[anyio.abc.Process]:
    root = pathlib.Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "runner")])}
    command = [sys.executable, node_process.__file__, url or b.server.url, name, backend, *more]
    async with await anyio.open_process(command, env=environment, stderr=None) as started:
        try:
            assert started.stdout is not None
            with anyio.fail_after(LIMIT_S):
                seen = b""
                while not seen.endswith(b"\n"):
                    seen += await started.stdout.receive()
            assert seen.decode().strip() == name
            yield started
        finally:
            if started.returncode is None:
                started.kill()


async def test_job_moves_well_before_the_time_to_live_when_its_runner_is_killed(
    anyio_backend: str,
) -> None:
    async with bench() as b:
        async with process(b, "n1", anyio_backend, "process", "60") as killed:
            await b.job(BEAT)
            before = await b.value(P("beat"))
            async with process(b, "n2", anyio_backend):
                killed.kill()
                with anyio.fail_after(LIMIT_S):  # the time to live is 60 s, the grace 2 s
                    after = await b.value(P("beat"), lambda beat: beat["node"] == "n2")
        assert after["fence"] > before["fence"]


async def test_stopped_runner_ends_cleanly_and_at_once(anyio_backend: str) -> None:
    async with bench() as b:
        async with process(b, "n1", anyio_backend) as node:
            await b.job(BEAT)
            await b.job("while True: pass", path="stuck", is_async=False)
            await b.value(P("beat"))
            await b.state(lambda state: state.running, path="stuck")
            node.send_signal(signal.SIGTERM)
            with anyio.fail_after(LIMIT_S):
                assert await node.wait() == 0
        for path in ("job", "stuck"):
            assert (await b.state(lambda _: True, path=path)).reason == "its runner was stopped"
            assert "value" not in await b.desk.get(b.claim_path(path))
        # Closed at the end, or, if the thread that never rests left no time for it, by the grace.
        with anyio.fail_after(LIMIT_S):
            while len(b.server.server.sessions):
                await anyio.sleep(0.05)
