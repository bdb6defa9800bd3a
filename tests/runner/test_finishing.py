"""The end of a run is told, whatever comes in between."""

from __future__ import annotations

import anyio
import pytest

from moat_kv_runner import supervision

pytestmark = pytest.mark.anyio


async def test_what_is_cancelled_meanwhile_comes_to_its_end() -> None:
    told: list[str] = []
    begun = anyio.Event()

    async def finish() -> None:
        begun.set()
        await anyio.sleep(0.05)
        told.append("done")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervision._to_the_end, finish)
        await begun.wait()
        tasks.cancel_scope.cancel()
    assert told == ["done"]


async def test_what_does_not_come_to_its_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "LEAVE_S", 0.05)
    begun = anyio.Event()

    async def finish() -> None:
        begun.set()
        await anyio.sleep_forever()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervision._to_the_end, finish)
            await begun.wait()
            tasks.cancel_scope.cancel()


async def test_its_error_comes_out_as_it_is() -> None:
    async def finish() -> None:
        raise LookupError("x")

    with pytest.raises(LookupError):
        await supervision._to_the_end(finish)
