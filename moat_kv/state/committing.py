"""What happens to a checked-out copy on its way to being the state.

Called by `context`; written once for both grounds, and for models alone and shared. In order: is
it made from the present state, the model's preconditions, `apply`, for a shared model the entry's
compare-and-set, the runtime state, subscribers, the file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from moat_kv.state import copying, errors

if TYPE_CHECKING:
    from moat_kv.state.grounds import Ground
    from moat_kv.state.model import StateModel
    from moat_kv.state.slot import Slot

logger = logging.getLogger(__name__)


async def commit(
    ground: Ground,
    slot: Slot,
    given: StateModel,
    *,
    held: Collection[Slot],
    cache: bool | None,
    force: bool,
) -> None:
    """Make a copy of `given` the state. Raises StaleModel, CacheError, Detached, Unknown, and what
    the model's preconditions and `apply` raise; all but CacheError leave the state as it was.

    `given` itself is then made from the new state, and has what `apply` has corrected.
    """
    began = time.perf_counter()
    try:
        keep = type(given).cached if cache is None else cache
        if keep:
            check_file(slot)
        candidate = copying.copy_of_object(given)
        rev = await _become(ground, slot, given, candidate, slot in held, force)
        if slot.has_apply:
            copying.fill(given, candidate)
        given.__dict__["_moat_rev"] = rev
        if keep:
            await ground.disk(write_file, slot)
    finally:
        slot.metrics.commit_latency.observe(time.perf_counter() - began)


async def _become(
    ground: Ground, slot: Slot, given: StateModel, candidate: StateModel, is_held: bool, force: bool
) -> int:
    entry = slot.entry
    with slot.mutex:
        have, old = slot.rev, slot.present
    plain = entry is not None and entry.is_plain
    base = given._moat_rev
    if not (force or plain) and base != have and (base or not is_held):
        raise _stale(slot, base, candidate)
    candidate.preconditions()
    if not slot.has_apply:
        if entry is None:
            return _install(slot, candidate, base, have, force, is_held)
        return await entry.publish(ground, candidate, have, force=force, later=is_held)
    await ground.user(candidate.apply(copying.copy_of_object(old)))
    try:
        candidate.preconditions()
        if entry is None:
            return _install(slot, candidate, base, have, force, is_held)
        return await entry.publish(ground, candidate, have, force=force, later=is_held)
    except BaseException:
        await _apply_again(ground, slot, candidate)
        raise


def _install(
    slot: Slot, candidate: StateModel, base: int, have: int, force: bool, is_held: bool
) -> int:
    with slot.mutex:
        if slot.rev == have or force:
            rev = slot.install(candidate, None, later=is_held)
        else:
            raise _stale(slot, base, candidate)
    if not is_held and slot.subscribers:
        slot.outgoing.go_on()
    return rev


def _stale(slot: Slot, base: int, candidate: StateModel) -> errors.StaleModel:
    slot.metrics.conflicts.inc()
    present = slot.copy()
    return errors.stale(slot.label, base, present._moat_rev, candidate, present)


async def _apply_again(ground: Ground, slot: Slot, failed: StateModel) -> None:
    """What was applied did not become the state: bring back what is."""
    winner = copying.copy_of_object(slot.present)
    try:
        await ground.user(winner.apply(failed), shield=True)
    except Exception:
        # The reason why the commit has failed is what its caller is told.
        logger.exception("%s could not be applied again", slot.label)


# Keeping it ---------------------------------------------------------------------------------------


def check_file(slot: Slot) -> None:
    """Raises NullCachePathError if there is no folder for a model's file."""
    if slot.file is None:
        slot.place_file()
        if slot.file is None:
            raise errors.NullCachePathError(slot.label)


def write_file(slot: Slot) -> None:
    """Write the present state. Raises CacheError."""
    assert slot.file is not None
    began = time.perf_counter()
    try:
        slot.file.keep(slot)
    finally:
        slot.metrics.cache_latency.observe(time.perf_counter() - began)
