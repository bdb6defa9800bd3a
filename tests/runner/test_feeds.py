"""A watch whose server could not go on from where it was tells what has vanished meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from moat_kv import Client, P, open_client
from moat_kv.client import results
from moat_kv.config import Places
from moat_kv.testing.server import running_server
from moat_kv_runner import admin, feeds, messages

pytestmark = pytest.mark.anyio


def event(path: str, rev: int, value: Any) -> results.WatchEvent:
    made = results.WatchEvent(rev, None)
    made.path = P(path)
    made.value = value
    return made


async def nothing() -> None:
    pass


def call_admin(client: Client) -> admin.CallAdmin:
    facts = admin.RunFacts(
        client=client,
        runner_client=client,
        places=Places(),
        node="n1",
        path=P("job"),
        fence=1,
        every_node=False,
        queue_limit=100,
        work_well=nothing,
    )
    return admin.CallAdmin(facts, state=messages.DetachedState())


async def test_entries_that_vanished_unseen_are_told_as_deleted() -> None:
    async with running_server() as server, open_client(server.url) as client:
        made = call_admin(client)
        watcher = feeds.Watcher(
            client, made, P("a"), cls=messages.ChangeMsg, fetch=True, min_depth=0, max_depth=-1
        )
        for each in (
            event("a.kept", 1, 1),
            event("a.gone", 2, 2),
            results.Ready(),
            results.Reset(reason="another epoch"),
            event("a.kept", 5, 3),
            event("a.new", 6, 4),
            results.Ready(),
        ):
            assert await watcher._take(each)
        state, start, *changes = [await made.info.get() for _ in range(made.info.qsize())]
        assert isinstance(state, messages.DetachedState)
        assert start.msg == 0
        told = {str(each.path): each.msg.get("value", "gone") for each in changes}
        assert told == {"a.kept": 3, "a.gone": "gone", "a.new": 4}


async def test_calls_after_the_end_of_a_run_are_refused() -> None:
    async with running_server() as server, open_client(server.url) as client:
        made = call_admin(client)
        assert await made.run(nothing_more) == 7
        with pytest.raises(RuntimeError, match="the run is over"):
            await made.watch(P("a"))
        with pytest.raises(RuntimeError, match="the run is over"):
            await made.timer(1)
        with pytest.raises(RuntimeError, match="the run is over"):
            await made.open_context(None)


async def nothing_more() -> int:
    return 7
