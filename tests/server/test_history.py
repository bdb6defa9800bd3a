"""Histories: whole, in portions, stopped in the middle, and failing."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from moat_kv import codec, errors
from moat_kv.engine.memory import MemoryEngine
from moat_kv.path import P, Path
from moat_kv.proto.messages import State
from moat_kv.testing.server import running_server
from tests.client.waiting import until
from tests.line import connected
from tests.server.attacking import only_connection

pytestmark = pytest.mark.anyio


async def test_a_revision_that_no_engine_knows_is_refused() -> None:
    async with running_server() as running, connected(running.url) as line:
        for before in (2**63, 2**64 - 1, -1):
            with pytest.raises(errors.BadArguments, match="before is a revision"):
                await line.rows("history", path=P("a"), before=before)
        await line.ask("ping")


async def test_a_long_history_comes_whole_and_in_portions() -> None:
    engine = MemoryEngine(history=100)
    async with running_server(engine=engine) as running, connected(running.url) as line:
        for n in range(100):
            await line.ask("set", n, path=P("a"))
        for limit, first in ((100, 99), (37, 99), (16, 99), (1, 99)):
            rows = await line.rows("history", path=P("a"), limit=limit)
            assert [codec.unpack(row[1]) for row in rows] == [first - n for n in range(limit)]
        assert await line.rows("history", path=P("b")) == []


async def test_a_history_may_be_stopped_while_it_is_read() -> None:
    go = anyio.Event()

    class Slow(MemoryEngine):
        async def history(self, path: Path, **options: Any) -> list[Any]:
            await go.wait()
            return await super().history(path, **options)

    async with running_server(engine=Slow()) as running, connected(running.url) as line:
        await line.ask("set", 1, path=P("a"))
        seq = await line.send("history", path=P("a"))
        assert (await line.next(seq)).state == State.START
        await line.ask("stop", seq=seq)
        assert (await line.next(seq)).state == State.END
        connection = only_connection(running)
        go.set()
        await until(lambda: connection.unanswered == 0)
        await line.ask("ping")


async def test_a_history_that_fails_ends_with_that_error() -> None:
    class Damaged(MemoryEngine):
        async def history(self, path: Path, **options: Any) -> list[Any]:
            raise errors.StorageDamaged("file", "torn")

    async with running_server(engine=Damaged()) as running, connected(running.url) as line:
        with pytest.raises(errors.StorageDamaged):
            await line.rows("history", path=P("a"))
        assert not only_connection(running)._streams
