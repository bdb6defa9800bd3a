"""Subtrees, lists and histories: read, also slowly or not to the end, and deleted."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from moat_kv import P, Path
from tests.client.waiting import both, until

pytestmark = pytest.mark.anyio


async def test_get_tree_gives_relative_paths_within_the_depths() -> None:
    async with both() as (_, client):
        for text in (":", "a", "a.b", "a.b.c", "x"):
            await client.set(P(text), text)

        async def rows(path: str, **depths: int) -> list[tuple[str, str]]:
            return [(str(row.path), row.value) async for row in client.get_tree(P(path), **depths)]

        assert await rows("a") == [(":", "a"), ("b", "a.b"), ("b.c", "a.b.c")]
        assert await rows("a", min_depth=1) == [("b", "a.b"), ("b.c", "a.b.c")]
        assert await rows("a", max_depth=1) == [(":", "a"), ("b", "a.b")]
        assert len(await rows(":")) == 5
        assert await rows("none") == []
        row = await anext(client.get_tree(P("a.b")))
        assert row.chain == (await client.get(P("a.b"))).chain


async def fill(client: Any, count: int, pad: str = "") -> None:
    for start in range(0, count, 500):
        numbers = range(start, min(start + 500, count))
        await client.batch([client.op_set(Path("t", n), [n, pad]) for n in numbers])


async def test_leaving_get_tree_early_stops_the_server() -> None:
    async with both() as (running, client):
        await fill(client, 10_000, "x" * 800)
        (connection,) = running.server.connections
        seen = []
        async for row in client.get_tree(P("t")):
            seen.append(row.value)
            if len(seen) == 3:
                break
        await until(lambda: not connection._streams)
        assert not client.shared.link._streams
        with anyio.move_on_after(5) as scope:
            async for _ in client.get_tree(P("t")):
                scope.cancel()
        await until(lambda: not connection._streams)
        rows = client.get_tree(P("t"))
        await rows.__anext__()
        await rows.aclose()
        assert [row async for row in rows] == []
        await until(lambda: not connection._streams)
        assert (await client.get(P("t:5"))).value[0] == 5


async def test_a_slow_reader_of_get_tree_holds_back_the_server_but_not_its_own_calls() -> None:
    async with both() as (running, client):
        await fill(client, 15_000, "x" * 500)
        rows = client.get_tree(P("t"))
        first = await rows.__anext__()
        (answer,) = client.shared.link._streams
        await until(lambda: answer.lagging)
        await anyio.sleep(0.2)
        assert len(getattr(answer, "_rows")) < 12_000  # noqa: B009  # not of the base
        (connection,) = running.server.connections
        assert connection._streams
        numbers = [first.value[0]]
        async for row in rows:
            numbers.append(row.value[0])
            if len(numbers) % 1_000 == 0:
                assert (await client.get(Path("t", row.value[0]))).value == row.value
        assert sorted(numbers) == list(range(15_000))


async def test_list_names_children_of_any_kind() -> None:
    async with both() as (_, client):
        for path in (P("d.a"), P("d.a.x"), P("d.a.y"), P("d:1"), P("d:t.z"), P("d:n")):
            await client.set(path, 0)
        found = {repr(one.name): (one.has_value, one.children) for one in await client.list(P("d"))}
        assert found == {
            "'a'": (True, 2),
            "1": (True, 0),
            "True": (False, 1),
            "None": (True, 0),
        }


async def test_history_is_newest_first() -> None:
    async with both() as (_, client):
        for value in range(5):
            await client.set(P("h"), value)
        await client.delete(P("h"))
        rows = await client.history(P("h"), limit=3)
        assert [row.get("value", "deleted") for row in rows] == ["deleted", 4, 3]
        assert rows[0].chain is None
        older = await client.history(P("h"), before=rows[-1].rev)
        assert [row.value for row in older] == [2, 1, 0]


async def test_delete_tree_counts() -> None:
    async with both() as (_, client):
        await fill(client, 1500)
        assert await client.delete_tree(P("t"), min_depth=1) == 1500
        assert await client.delete_tree(P("t")) == 0
