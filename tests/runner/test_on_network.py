"""Jobs in processes of their own on a network of three servers: fail-over, lost claims, servers."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv import P, open_client
from moat_kv.code import CodeRoot
from moat_kv.testing import cluster
from tests.runner.bench import Bench
from tests.runner.test_children import gone
from tests.runner.test_node_process import process

# Each takes some seconds; what depends on the kind of event loop is tested elsewhere.
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(180),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]


BEAT = """
    import os
    await _client.set(_P("starts") / _self.fence, [_self.node, os.getpid()])
    timer = await _self.timer(0.05)
    async for msg in _info:
        if isinstance(msg, _cls.TimerMsg):
            now = await _client.get(_P("count"))
            await _self.set(_P("beat"), [_self.node, _self.fence, now.get("value")])
            await timer.run(0.05)
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        with cluster.running(tmp_path_factory.mktemp("box")) as made:
            yield made


@asynccontextmanager
async def desk_at(box: cluster.Cluster, server: str) -> AsyncIterator[Bench]:
    """A desk at that server; nothing is there from before."""
    async with open_client(box.url(server)) as desk, anyio.create_task_group() as tasks:
        await desk.delete_tree(P(":"))
        made = Bench(None, desk, tasks)
        made.code = await CodeRoot.as_handler(desk)
        yield made
        tasks.cancel_scope.cancel()


async def state_of(b: Bench) -> Any:
    return (await b.desk.get(b.state_path())).get("value")


async def beats(b: Bench, **wanted: Any) -> list[Any]:
    """The first beat like this: `node`, `count`, a `fence` above that."""

    def is_so(beat: list[Any]) -> bool:
        node, fence, count = beat
        found = {"node": node, "count": count}
        above = wanted.get("fence", 0)
        return fence > above and all(found[k] == v for k, v in wanted.items() if k != "fence")

    try:
        found: list[Any] = await b.value(P("beat"), is_so)
    except AssertionError as exc:
        exc.add_note(f"the job: {await state_of(b)}")
        raise
    return found


async def started(b: Bench, fence: int) -> tuple[str, int]:
    """Where the run with that fence began, and in which process."""
    node, pid = (await b.desk.get(P("starts") / fence)).value
    return node, pid


async def test_job_goes_on_elsewhere_when_its_runner_is_killed(
    box: cluster.Cluster, anyio_backend: str
) -> None:
    async with desk_at(box, "s3") as b:
        async with process(b, "n1", anyio_backend, "process", "3", url=box.url("s1")) as killed:
            await b.job(BEAT)
            _, fence, _ = await beats(b, node="n1")
            _, pid = await started(b, fence)
            await b.node("n2", url=box.url("s2"), grace_s=None)
            killed.kill()
            await gone(pid)
            await beats(b, node="n2", fence=fence)


async def test_child_whose_claim_is_gone_is_ended_and_begun_anew(box: cluster.Cluster) -> None:
    async with desk_at(box, "s3") as b:
        await b.node("n1", url=box.url("s1"), grace_s=None)
        await b.job(BEAT)
        _, fence, _ = await beats(b)
        _, pid = await started(b, fence)
        await b.desk.delete(b.claim_path())
        await gone(pid)
        await beats(b, fence=fence)


async def test_child_and_runner_go_on_at_another_server_when_theirs_is_killed(
    box: cluster.Cluster,
) -> None:
    async with desk_at(box, "s3") as b:
        await b.node("n1", url=[box.url("s1"), box.url("s2")], ttl_s=None, grace_s=None)
        await b.job(BEAT)
        _, fence, _ = await beats(b)
        _, pid = await started(b, fence)
        box.kill("s1")
        try:
            await b.desk.set(P("count"), 1)
            assert (await beats(b, count=1))[1] == fence
            assert await started(b, fence) == ("n1", pid)
            # The line of the child that has moved is bound to its claim, too.
            await b.desk.delete(b.claim_path())
            await gone(pid)
            await beats(b, fence=fence)
        finally:
            await anyio.to_thread.run_sync(box.start, "s1")


async def test_child_writes_on_when_the_leader_of_the_network_is_lost(box: cluster.Cluster) -> None:
    async with desk_at(box, "s3") as b:
        await b.node("n1", url=list(box.urls), ttl_s=None, grace_s=None)
        await b.job(BEAT)
        _, fence, _ = await beats(b)
        leader = await anyio.to_thread.run_sync(box.leader)
        assert leader is not None
        box.kill(leader)
        try:
            await b.desk.set(P("count"), 2)
            assert (await beats(b, count=2))[1] == fence
        finally:
            await anyio.to_thread.run_sync(box.start, leader)
