"""Locking and unlocking the models of a State, in the one order.

Called by `context`; written once for both grounds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moat_kv.state import errors, holding, loops

if TYPE_CHECKING:
    from moat_kv.state.grounds import Ground
    from moat_kv.state.slot import Slot


async def enter(
    ground: Ground, slots: Sequence[Slot], task: object, timeout_s: float | None
) -> None:
    """Lock all slots, which are in order, for a task; all or none.

    Raises AlreadyHeld, LockOrderError, WouldDeadlock, LockTimeout; Detached for shared models.
    """
    holding.add(task, slots)
    taken: list[Slot] = []
    deadline = loops.Deadline(timeout_s) if timeout_s is not None else None
    try:
        for slot in slots:
            began = time.perf_counter()
            if not slot.lock.try_acquire(in_loop=type(task) is not int):
                await _wait(ground, slot, timeout_s, deadline)
            taken.append(slot)
            if slot.entry is not None:
                await slot.entry.lock(ground, None if deadline is None else deadline.left_s)
            slot.metrics.lock_wait.observe(time.perf_counter() - began)
    except BaseException:
        for slot in reversed(taken):
            await _release(ground, slot)
        holding.remove(task, slots)
        raise


async def _wait(
    ground: Ground, slot: Slot, timeout_s: float | None, deadline: loops.Deadline | None
) -> None:
    try:
        got = await ground.lock(slot.lock, None if deadline is None else deadline.left_s)
    except RuntimeError as exc:
        raise errors.WouldDeadlock(slot.label) from exc
    if not got:
        raise errors.LockTimeout(slot.label, timeout_s)


async def leave(ground: Ground, slots: Sequence[Slot], task: object) -> None:
    """Unlock what `enter` locked; then subscribers are told."""
    try:
        for slot in reversed(slots):
            await _release(ground, slot)
    finally:
        holding.remove(task, slots)
        for slot in slots:
            if slot.subscribers:
                slot.outgoing.release()


async def _release(ground: Ground, slot: Slot) -> None:
    try:
        if slot.entry is not None:
            await slot.entry.unlock(ground)
    finally:
        slot.lock.release()
