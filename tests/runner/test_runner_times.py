"""That a runner's times go together; wrong ones are refused with a line that names both."""

from __future__ import annotations

import pytest

from moat_kv import errors, open_client
from moat_kv.client import session
from moat_kv.config import Config, RunnerConfig
from moat_kv.server import sessions
from moat_kv.server.times import DEFAULT_TIMES
from moat_kv.testing.server import running_server
from moat_kv_runner import admin, run, running, serving, supervision, times
from moat_kv_runner.children import child_process


@pytest.mark.parametrize(
    ("ttl_s", "grace_s", "named"),
    [
        (5.0, 6.0, "runner.grace_s: 6 s does not go with runner.ttl_s, 5 s: at most that"),
        (
            None,
            0.3,
            "runner.grace_s: 0.3 s does not go with the time to kill a job's process",
        ),
        (
            0.2,
            None,
            "runner.ttl_s: 0.2 s does not go with the time to kill a job's process",
        ),
    ],
)
def test_times_that_do_not_go_together_are_refused_by_name(
    ttl_s: float | None, grace_s: float | None, named: str
) -> None:
    with pytest.raises(errors.BadConfig) as caught:
        times.check(ttl_s, grace_s)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("ttl_s", "grace_s"),
    [
        pytest.param(sessions.TTL_S, sessions.GRACE_S, id="one-server"),
        pytest.param(DEFAULT_TIMES.ttl_s, DEFAULT_TIMES.grace_s, id="network"),
    ],
)
def test_children_are_dead_before_others_may_have_their_jobs(ttl_s: float, grace_s: float) -> None:
    times.check(ttl_s, grace_s)
    for whole_s in (ttl_s, grace_s):
        assert session.GIVE_UP * whole_s + times.kill_s(ttl_s, grace_s) < whole_s


def test_runner_that_ends_in_good_order_outlives_its_scripts() -> None:
    assert admin.CLOSE_S < running.STOP_S
    assert running.STOP_S + child_process.EXIT_S + supervision.LEAVE_S < serving.LEASE_END_S


@pytest.mark.anyio
async def test_runner_with_wrong_settings_does_not_start() -> None:
    settings = Config(runner=RunnerConfig(ttl_s=2.0, grace_s=3.0))
    async with running_server() as server, open_client(server.url, config=settings) as client:
        with pytest.raises(errors.BadConfig, match=r"runner\.grace_s: 3 s .* runner\.ttl_s, 2 s"):
            await run(client, name="n1")
