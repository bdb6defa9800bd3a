"""Which task holds which models, and that none adds one that comes before them.

Used by `context` at the entry and exit of each State. All States lock in the one order of their
slots' `order`, so a circle of waiting cannot come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moat_kv.state import errors

if TYPE_CHECKING:
    from moat_kv.state.slot import Slot

#: By task or thread. Each has one key of its own, and only it changes what is there.
_held: dict[object, list[Slot]] = {}


def add(task: object, slots: Sequence[Slot]) -> None:
    """Note that a task is about to lock these, which are in order.

    Raises AlreadyHeld, LockOrderError.
    """
    held = _held.get(task)
    if held is None:
        _held[task] = list(slots)
        return
    for slot in slots:
        if slot in held:
            raise errors.AlreadyHeld(slot.label)
    last = max(held, key=lambda each: each.order)
    for slot in slots:
        if slot.order < last.order:
            raise errors.LockOrderError(slot.label, last.label)
    held.extend(slots)


def remove(task: object, slots: Sequence[Slot]) -> None:
    """The task holds these no more."""
    held = _held[task]
    if len(held) == len(slots):
        del _held[task]
        return
    for slot in slots:
        held.remove(slot)
