"""Locking and unlocking the models of a State, in the one order.

Called by `context`; written once for both grounds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moat_kv.state import errors, holding, loops

if TYPE_CHECKING:
    from moat_kv.state.grounds import Ground
    from moat_kv.state.shared_entry import SharedEntry
    from moat_kv.state.slot import Slot

logger = logging.getLogger(__name__)

_NO_LIMIT = loops.Deadline(None)


async def enter(
    ground: Ground, slots: Sequence[Slot], task: object, timeout_s: float | None
) -> None:
    """Lock all slots, which are in order, for a task; all or none.

    Raises AlreadyHeld, LockOrderError, WouldDeadlock, LockTimeout; Detached for shared models.
    """
    holding.add(task, slots)
    taken: list[Slot] = []
    deadline = _NO_LIMIT if timeout_s is None else loops.Deadline(timeout_s)
    in_loop = type(task) is not int
    try:
        for slot in slots:
            began = time.perf_counter()
            if not slot.lock.try_acquire(in_loop=in_loop):
                await _wait(ground, slot, timeout_s, deadline)
            if slot.entry is not None:
                await _lock_entry(ground, slot, slot.entry, deadline)
            taken.append(slot)
            slot.metrics.lock_wait.observe(time.perf_counter() - began)
    except BaseException:
        holding.remove(task, slots)
        await _release(ground, taken)
        raise


async def _wait(
    ground: Ground, slot: Slot, timeout_s: float | None, deadline: loops.Deadline
) -> None:
    try:
        got = await ground.lock(slot.lock, deadline.left_s)
    except RuntimeError as exc:
        raise errors.WouldDeadlock(slot.label) from exc
    if not got:
        raise errors.LockTimeout(slot.label, timeout_s)


async def _lock_entry(
    ground: Ground, slot: Slot, entry: SharedEntry, deadline: loops.Deadline
) -> None:
    try:
        await entry.lock(ground, deadline.left_s)
    except BaseException:
        slot.lock.release()
        raise


async def leave(ground: Ground, slots: Sequence[Slot], task: object) -> None:
    """Unlock what `enter` locked; then subscribers are told."""
    try:
        if len(slots) == 1 and slots[0].entry is None:
            slots[0].lock.release()  # nearly all; the coroutine would take as long again
        else:
            await _release(ground, slots)
    finally:
        holding.remove(task, slots)
        for slot in slots:
            if slot.subscribers:
                slot.outgoing.release()


async def _release(ground: Ground, slots: Sequence[Slot]) -> None:
    """Unlock these, the last one first, whatever happens to one of them."""
    for index in range(len(slots) - 1, -1, -1):
        slot = slots[index]
        try:
            if slot.entry is not None:
                await slot.entry.unlock(ground)
        except Exception as exc:
            # The lock goes with the session; what was committed under it was committed.
            logger.warning("the lock of %s could not be released: %s", slot.label, exc)
        except BaseException:
            await _release(ground, slots[:index])
            raise
        finally:
            slot.lock.release()
