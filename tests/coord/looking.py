"""What there is of a resource, and what was executed, for tests of updates."""

from __future__ import annotations

import anyio

from moat_kv import Path
from moat_kv.coord import aio, resource, stock
from tests.coord import widgets


async def at(process: aio.Process, name: str = "test.test.w") -> stock.Stock:
    return await stock.read(process.client, process.path_of(name))


async def nothing_left(process: aio.Process, name: str = "test.test.w") -> None:
    with anyio.fail_after(30):
        while (found := await everything(process, name)) and all(
            each[0] == resource.LINE for each in found
        ):
            # Whoever looks for what others left may have the lock for a moment.
            await anyio.sleep(0.01)
    assert [str(each) for each in found] == []


async def everything(process: aio.Process, name: str) -> list[Path]:
    return [row.path async for row in process.client.get_tree(process.path_of(name))]


def can_execute(process: aio.Process, kind: type[aio.Update]) -> None:
    """Without seeing to what others left by itself, at a time that no test knows."""
    process.watching.kinds[kind.kind] = kind
    process.watching.host = process


async def eventually_total(count: int, name: str = "w") -> None:
    with anyio.fail_after(30):
        while widgets.total(name) < count:
            await anyio.sleep(0.01)
    assert widgets.total(name) == count
