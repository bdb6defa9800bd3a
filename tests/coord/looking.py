"""What there is of a resource, and what was executed, for tests of updates."""

from __future__ import annotations

import anyio

from moat_kv.coord import aio, stock
from tests.coord import widgets


async def at(process: aio.Process, name: str = "test.test.w") -> stock.Stock:
    return await stock.read(process.client, process.path_of(name))


async def nothing_left(process: aio.Process, name: str = "test.test.w") -> None:
    found = process.client.get_tree(process.path_of(name))
    assert [str(row.path) async for row in found] == []


async def eventually_total(count: int, name: str = "w") -> None:
    with anyio.fail_after(30):
        while widgets.total(name) < count:
            await anyio.sleep(0.01)
    assert widgets.total(name) == count
