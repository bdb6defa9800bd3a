"""Shared models whose users are cancelled: what they held passes on."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import pytest

from moat_kv import open_client
from moat_kv.state import Models, State, attach, grounds, kept_lock
from moat_kv.testing.server import RunningServer
from tests.state.models import Counter, Device

pytestmark = pytest.mark.anyio


async def load(models: Models) -> None:
    async with State(within=models) as state:
        await state.load(Counter())
        await state.load(Device("d"))


async def hold(kind: Any, models: Models, held: anyio.Event) -> None:
    async with State(kind, within=models):
        held.set()
        await anyio.sleep_forever()


async def hold_in_vain(kind: Any, models: Models) -> None:
    """Hold it until that is cancelled, longer than a lock is kept."""
    held = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, kind, models, held)
        await held.wait()
        await anyio.sleep(kept_lock.KEEP_S)
        tasks.cancel_scope.cancel()


async def test_a_lock_is_released_if_its_holder_is_cancelled(served: RunningServer) -> None:
    one, other = Models(), Models()
    async with open_client(served.url) as client, attach(client, within=one):
        await load(one)
        async with attach(served.url, within=other):
            await load(other)
            for models, next_one in [(one, other), (other, one)]:
                await hold_in_vain(Counter, models)
                async with State(Counter, timeout_s=30, within=next_one):
                    pass


async def test_who_is_cancelled_while_waiting_lets_go_of_what_it_has(served: RunningServer) -> None:
    one, other = Models(), Models()
    device = Device.instance("d")
    async with open_client(served.url) as client, attach(client, within=one):
        await load(one)
        async with attach(served.url, within=other):
            await load(other)
            held = anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hold, device, other, held)
                await held.wait()
                with anyio.move_on_after(3 * kept_lock.KEEP_S) as scope:
                    async with State(Counter, device, within=one):
                        raise AssertionError("the other one holds it")
                assert scope.cancelled_caught
                tasks.cancel_scope.cancel()
            async with State(Counter, timeout_s=30, within=other):
                pass
            async with State(Counter, device, timeout_s=30, within=one):
                pass


async def test_who_is_cancelled_waits_only_so_long_for_another_loop(
    one: Models, other: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounds, "FINISH_S", 0.2)
    go_on = threading.Event()
    leave = kept_lock.KeptLock.leave

    async def leave_late(lock: kept_lock.KeptLock) -> None:
        with anyio.CancelScope(shield=True):
            while not go_on.is_set():
                await anyio.sleep(0.01)
            await leave(lock)

    for models in (one, other):
        await load(models)
    monkeypatch.setattr(kept_lock.KeptLock, "leave", leave_late)
    began = time.monotonic()
    await hold_in_vain(Counter, one)
    assert 0.2 <= time.monotonic() - began < 20
    go_on.set()
    async with State(Counter, timeout_s=30, within=other):
        pass
