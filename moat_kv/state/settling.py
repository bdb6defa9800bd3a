"""Waiting until subscribers have been told of everything.

For users, and at the end of the process. Looks at all models that are loaded.
"""

from __future__ import annotations

import atexit
import logging
import weakref
from typing import TYPE_CHECKING

import anyio.lowlevel

from moat_kv.state import loops, venues

if TYPE_CHECKING:
    from moat_kv.state.slot import Slot

logger = logging.getLogger(__name__)

#: How long the end of the process waits for subscribers, in seconds.
AT_EXIT_S = 5.0
#: All that may have something to tell.
_all: weakref.WeakSet[Slot] = weakref.WeakSet()
#: How often a wait looks whether a loop has ended that it waits for, in seconds.
_LOOK_S = 0.2


def register(slot: Slot) -> None:
    _all.add(slot)


def _busy() -> list[Slot]:
    found = []
    for slot in list(_all):
        # Who takes a new state shows it a moment before it is to be told, and holds this meanwhile.
        with slot.mutex:
            if not slot.outgoing.is_idle():
                found.append(slot)
    return found


def settle(timeout_s: float | None = None) -> bool:
    """Wait until all subscribers have been told of all changes so far; False: not in that time.

    Raises RuntimeError in an event loop (use `asettle`) and in a subscriber.
    """
    if loops.has_loop():
        raise RuntimeError("settle() would stop the event loop that runs here; await asettle()")
    if venues.background.is_here():
        raise RuntimeError("a subscriber cannot wait for itself")
    return _settle(loops.Deadline(timeout_s))


def _settle(deadline: loops.Deadline) -> bool:
    for slot in _busy():
        while True:
            waker = loops.ThreadWaker()
            if not slot.outgoing.wake_when_idle(waker):
                break
            if waker.wait(_look(deadline)):
                break
            if deadline.left_s == 0:
                return False
    return True


async def asettle(timeout_s: float | None = None) -> bool:
    """`settle` in an event loop."""
    deadline = loops.Deadline(timeout_s)
    for slot in _busy():
        while True:
            waker = loops.TaskWaker()
            if not slot.outgoing.wake_when_idle(waker):
                break
            if await waker.wait(_look(deadline)):
                break
            if deadline.left_s == 0:
                return False
    await anyio.lowlevel.checkpoint()
    return True


def _look(deadline: loops.Deadline) -> float:
    left_s = deadline.left_s
    return _LOOK_S if left_s is None else min(left_s, _LOOK_S)


@atexit.register
def at_exit() -> None:
    """Give subscribers their time at the end of the process."""
    if not _settle(loops.Deadline(AT_EXIT_S)):
        logger.warning("subscribers had not been told everything when the process ended")
