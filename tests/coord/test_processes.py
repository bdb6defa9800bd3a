"""A process and its session: begun, cancelled, over with its client."""

from __future__ import annotations

import anyio
import pytest
from anyio.abc import TaskStatus

from moat_kv import open_client
from moat_kv.coord import aio
from moat_kv.testing.server import running_server
from tests.client.waiting import until
from tests.coord.test_locks import two

pytestmark = pytest.mark.anyio


async def test_a_process_whose_user_is_cancelled_lets_go_of_its_locks() -> None:
    async with two() as (_, one, other):
        with anyio.CancelScope() as scope:
            async with aio.Process(one.client) as process:
                process.on_stop.append(anyio.sleep_forever)
                await process.lock("me").acquire()
                scope.cancel()
        assert process.stopped
        assert process.session.ended
        await other.lock("me").acquire(30)


async def test_a_process_whose_client_was_closed_is_over() -> None:
    async with running_server() as running:
        async with open_client(running.url) as client:
            process = aio.Process(client)
            await process.start()
        await process.stop()
        assert process.stopped
        process.leave_soon(None, None)  # type: ignore[arg-type]


async def test_a_process_that_is_cancelled_at_its_start_leaves_no_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hangs(_process: aio.Process, *, task_status: TaskStatus[None]) -> None:
        await anyio.sleep_forever()

    async with two() as (running, one, _):
        live = running.server.sessions._live
        process = aio.Process(one.client)
        monkeypatch.setattr(aio.Process, "_run", hangs)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.start)
            await until(lambda: hasattr(process, "session"))
            assert process.session.id in live
            tasks.cancel_scope.cancel()
        await until(lambda: process.session.id not in live)
