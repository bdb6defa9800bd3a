"""Making a model known to this process, with the last state that is kept of it anywhere.

Called by `context` for `State.load`, and by `sharing` for models that were loaded before they were
shared. What the network has goes first, then the file, then what the caller brought.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from moat_kv.state import cache_files, copying, errors, registry

if TYPE_CHECKING:
    from moat_kv.state.grounds import Ground
    from moat_kv.state.model import StateModel
    from moat_kv.state.registry import Models

logger = logging.getLogger(__name__)


async def load(ground: Ground, models: Models, given: StateModel) -> None:
    """Load a model; `given` then is a copy of the state.

    A model that is loaded already keeps its subscribers, and they are told of the state. Raises
    UninitializedStateError, RefusedValue and the like, SchemaTooNew; Detached, NameTaken for a
    shared one.
    """
    registry.refuse_other(given)
    label = type(given).__qualname__
    try:
        given.serialize()
    except Exception as exc:
        raise errors.UninitializedStateError(label, repr(exc)) from exc
    given.preconditions()
    slot, is_new = models.add(given)
    slot.place_file()
    if slot.entry is None:
        found = cache_files.load(slot, given)
        slot.recovered = found is not None
        slot.install(copying.copy_of_object(given) if found is None else found, None)
    sharing = models.sharing_of(slot.cls)
    if sharing is not None:
        await sharing.adopt(ground, slot)
    if is_new:
        models.keep(slot)
    slot.outgoing.go_on()
    copying.fill(given, slot.copy())
    logger.debug("loaded %s: %r", slot.label, given)
