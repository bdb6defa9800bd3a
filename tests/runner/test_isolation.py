"""Where a job runs: as it says, or its group, or its runner; else in a process of its own."""

from __future__ import annotations

import os

import anyio.abc
import pytest

from moat_kv import Client, open_client
from moat_kv.config import Config, RunnerConfig
from moat_kv_runner import run
from tests.runner.bench import GROUP, bench

pytestmark = pytest.mark.anyio

SCRIPT = "import os\nreturn os.getpid()"


@pytest.mark.parametrize(
    ("job", "group", "runner", "is_inline"),
    [
        pytest.param(None, None, None, False, id="nobody-says"),
        pytest.param(None, None, "inline", True, id="runner"),
        pytest.param(None, "process", "inline", False, id="group-before-runner"),
        pytest.param(None, "inline", None, True, id="group"),
        pytest.param("process", "inline", "inline", False, id="job-before-both"),
        pytest.param("inline", "process", None, True, id="job"),
    ],
)
async def test_job_runs_where_it_group_or_runner_says(
    job: str | None, group: str | None, runner: str | None, is_inline: bool
) -> None:
    settings = Config(runner=RunnerConfig() if runner is None else RunnerConfig(isolate=runner))
    async with bench() as b, open_client(b.server.url, config=settings) as client:
        if group is not None:
            place = b.places.run / "any" + GROUP
            await b.desk.set(place, {"defaults": {"isolate": group}})
        await b.tasks.start(_run, client)
        await b.job(SCRIPT, isolate=job)
        assert ((await b.state()).result == os.getpid()) == is_inline
        b.tasks.cancel_scope.cancel()


async def _run(client: Client, *, task_status: anyio.abc.TaskStatus[str]) -> None:
    await run(client, group=GROUP, name="n1", task_status=task_status)
