"""Seeing to what is left: by this process when something failed, by others when they died.

Each process that has updates runs `keep`, in a task or in a thread of its own: it tries again what
failed, and takes up what nobody is left for. What there is to do is found by `watching`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from moat_kv import errors
from moat_kv.coord import ending, stock

if TYPE_CHECKING:
    from moat_kv.coord.aio.lock import Lock
    from moat_kv.coord.aio.process import Process
    from moat_kv.coord.ground import Ground
    from moat_kv.coord.updating import Host
    from moat_kv.path import Path

logger = logging.getLogger(__name__)


async def keep(host: Host) -> None:
    """For as long as the process lives."""
    process, on = host.asynchronous, host.ground
    while (work := await on.io(process.watching.next)) is not None:
        for course in work.failed:
            try:
                await course.end(True)
            except Exception as exc:
                logger.warning("%s failed again: %s", course.name, exc)
                if course.todo is None:
                    process.unsettled.add(course)
        for name in work.orphans:
            try:
                await settle_left(process, on, name, wait=False)
            except errors.AlreadyLocked:
                logger.debug("somebody else sees to %s", name)


async def settle_left(process: Process, on: Ground, name: str | Path, *, wait: bool = True) -> None:
    """Merge and execute what there is of a resource that nobody refers to any more.

    Only what is of a kind that this process knows. What fails is tried again later; trouble with
    the server is left to the next time. Raises AlreadyLocked.
    """
    lock = process.lock(name, wait)
    try:
        await on.io(lock.acquire)
        try:
            while await _settle_one(process, on, name, lock):
                pass
        finally:
            await on.io(lock.release)
    except errors.AlreadyLocked:
        raise
    except errors.MoatKvError as exc:
        logger.warning("what is left of %s is seen to later: %s", name, exc)
        process.watching.look_again()


async def _settle_one(process: Process, on: Ground, name: str | Path, lock: Lock) -> bool:
    """Take up one thing, with all that can be merged with it; whether there was one."""
    found = await on.io(ending.read, process.client, process.path_of(name))
    todos, parts = found.orphaned(process.watching.live)
    known = process.watching.kinds
    for todo in todos:
        if todo.kind in known:
            return await _settle(process, lock, None, todo)
    for part in parts:
        if part.kind in known:
            return await _settle(process, lock, part, None)
    return False


async def _settle(
    process: Process, lock: Lock, part: stock.Part | None, todo: stock.Todo | None
) -> bool:
    """Whether it came to its end; what fails stays, and is seen to later."""
    left = todo or part
    assert left is not None
    watching = process.watching
    try:
        update = watching.kinds[left.kind]._made(watching.host, left.state)
        course = update._course
        course.take_up(part, todo)
        await course.settle_alone(lock)
    except errors.MoatKvError:
        raise
    except Exception:
        # If it could be executed, it is on its own list now, with its state in the tree.
        logger.exception("what was left at %s of kind %s failed", lock.name, left.kind)
        watching.look_again()
        return False
    return True
