"""A runner whose server dies goes on at another one, and so do its jobs."""

from __future__ import annotations

import pathlib
import textwrap

import anyio
import anyio.abc
import pytest

from moat_kv import P, Path, errors, open_client
from moat_kv.code import CodeRoot
from tests.runner.bench import Bench
from tests.runner.parts import TIMES
from tests.server.network import Network, Site, until

pytestmark = pytest.mark.anyio

#: Of the session; four fifths of it may pass without a sign of life, in seconds.
TTL_S = 4.0

BEAT = """
    await _client.set(_P("starts") / _self.fence, _self.node)
    timer = await _self.timer(0.02)
    async for msg in _info:
        if isinstance(msg, _cls.TimerMsg):
            await _self.set(_P("beat"), (await _self.get(_P("count"))))
            await timer.run(0.02)
        else:
            await _client.set(_P("seen"), type(msg).__name__)
"""


async def test_runner_whose_server_dies_goes_on_at_another_without_restarting_jobs(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path)
    die = anyio.Event()

    async def serve(*, task_status: anyio.abc.TaskStatus[Site]) -> None:
        async with net.server("n1", times=TIMES) as one:
            task_status.started(one)
            await die.wait()
            one.cut()  # it dies before it can give anything back

    async with (
        net.server("n2", times=TIMES) as two,
        open_client(two.url) as desk,
        anyio.create_task_group() as servers,
    ):
        one = await servers.start(serve)
        await until(lambda: len(two.server.presence.peers) == 1)
        async with anyio.create_task_group() as tasks:
            b = Bench(two.running, desk, tasks)
            b.code = await CodeRoot.as_handler(desk)
            await desk.set(P("count"), 1)
            node = await b.node("pi", url=[one.url, two.url], ttl_s=TTL_S, grace_s=3.5)
            assert node.client.server.node == "n1"
            await b.job(textwrap.dedent(BEAT))
            await b.value(P("beat"), lambda beat: beat == 1)
            claim = await desk.get(b.claim_path())
            die.set()
            await until(lambda: node.client.connected and node.client.server.node == "n2")
            await desk.set(P("count"), 2)
            await b.value(P("beat"), lambda beat: beat == 2)
            # Longer than its session would have had at the server that is dead.
            await anyio.sleep(TIMES.lease_s + TTL_S + 0.5)
            await desk.set(P("count"), 3)
            await b.value(P("beat"), lambda beat: beat == 3)
            assert (await desk.get(b.claim_path())).rev == claim.rev
            starts = [row.path async for row in desk.get_tree(P("starts"))]
            assert starts == [Path(claim.rev)]
            with pytest.raises(errors.StaleFence):
                await desk.bound(fence=(b.claim_path(), claim.rev - 1)).set(P("beat"), 0)
            tasks.cancel_scope.cancel()
