"""`moat kv run drain`, `rebalance`, and what `info` shows of nodes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest

import moat_kv
from moat_kv import P
from moat_kv_runner import runner
from moat_kv_runner.node_facts import NodeFacts
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio

STAY = "import anyio\nawait anyio.sleep_forever()"


@asynccontextmanager
async def _runners(url: str, *names: str) -> AsyncIterator[anyio.abc.TaskGroup]:
    async with anyio.create_task_group() as tasks:
        for name in names:
            await tasks.start(_runner, url, name)
        yield tasks
        tasks.cancel_scope.cancel()


async def _runner(
    url: str, name: str, *, task_status: anyio.abc.TaskStatus[str] = anyio.TASK_STATUS_IGNORED
) -> None:
    facts = NodeFacts(tags=frozenset({"gpio"}), weight=2.0) if name == "n2" else None
    async with moat_kv.open_client(url, name=name) as client:
        await runner.run(client, name=name, facts=facts, task_status=task_status)


async def _started(client: moat_kv.Client, count: int) -> None:
    states = P(":.moat.kv.state.any.default")
    with anyio.fail_after(30):
        async with client.watch(states, fetch=True, min_depth=1) as changes:
            seen = set()
            async for event in changes:
                if isinstance(event, moat_kv.WatchEvent) and event.value.get("started"):
                    seen.add(event.path)
                if len(seen) == count:
                    return


async def test_drained_node_has_its_jobs_moved_until_it_is_undone(
    moat: Moat, client: moat_kv.Client
) -> None:
    await moat.fine("code", "stay", "set", "-s", "-", stdin=STAY)
    async with _runners(moat.url, "n1") as tasks:
        for name in ("a", "b"):
            await moat.fine("run", "at", name, "set", "-c", "stay", "-t", "0")
        await _started(client, 2)
        await tasks.start(_runner, moat.url, "n2")
        moved = json.loads(await moat.fine("run", "drain", "n1", "-o", "json"))
        assert moved == [{"path": "a", "node": "n2"}, {"path": "b", "node": "n2"}]
        shown = json.loads(await moat.fine("run", "info", "-o", "json"))["nodes"]
        assert shown["n1"]["drained"]
        assert shown["n2"].items() >= {"drained": False, "tags": ["gpio"], "weight": 2.0}.items()
        text = await moat.fine("run", "info")
        assert "n1 (all, any, at, drained), n2 (all, any, at, has gpio, weight 2)" in text
        await moat.fine("run", "drain", "n1", "--undo")
        assert (await client.get(P(":.moat.kv.run.any.default"))).value == {}


async def test_jobs_are_spread_anew(moat: Moat, client: moat_kv.Client) -> None:
    await moat.fine("code", "stay", "set", "-s", "-", stdin=STAY)
    async with _runners(moat.url, "n1") as tasks:
        for name in ("a", "b", "c"):
            await moat.fine("run", "at", name, "set", "-c", "stay", "-t", "0")
        await _started(client, 3)
        await tasks.start(_runner, moat.url, "n2")
        rows = json.loads(await moat.fine("run", "rebalance", "-o", "json"))
        assert rows == [
            {"node": "n1", "before": 3, "now": 1},
            {"node": "n2", "before": 0, "now": 2},
        ]


async def test_group_without_runners_cannot_be_spread(moat: Moat) -> None:
    ended = await moat("run", "-g", "none", "rebalance")
    assert ended.code == 3
    assert ended.error_line == "moat: no runner of group none; none to spread among"


async def test_node_that_is_not_there_is_drained_for_when_it_comes(moat: Moat) -> None:
    ended = await moat("run", "drain", "n9")
    assert ended.code == 0
    assert "no runner n9 serves group default now" in ended.out + ended.err
    ended = await moat("run", "-n", "n9", "drain", "n9")
    assert ended.code == 128
    assert "only jobs for any node move" in ended.error_line
