"""What a user of state models can meet beside the package's own errors.

Raised by the other modules of `moat_kv.state`; handed out by `moat_kv.state`. What a model's own
setters, validators and `apply` raise passes through as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from moat_kv import errors

if TYPE_CHECKING:
    from moat_kv.state.model import StateModel


class StateError(errors.MoatKvError):
    """The base of these."""


class ModelNotFound(StateError, KeyError):
    """No such model was loaded; `known` are the ids of this class that were."""

    fields = ("model", "known")
    message = "the model {model} was not loaded; `State().load(...)` it first"


class UninitializedStateError(StateError):
    """A model that is to be loaded cannot be serialized."""

    fields = ("model", "reason")
    message = "{model} cannot be serialized: {reason}"


class RefusedValue(StateError, ValueError):
    """A declared attribute's type or validator does not allow the value."""

    fields = ("model", "attribute", "reason")
    message = "{model}.{attribute}: {reason}"


class StaleModel(StateError):
    """A commit of what is not made from the present state; nothing was changed.

    `committed` and `present` are both versions, as copies of one's own: what was to be committed,
    and what is there now. `present` can be changed and committed in turn. `base` and `have` are
    their revisions (0: never checked out).
    """

    fields = ("model", "base", "have")
    message = "{model} has changed: made from revision {base}, now it is at {have}"

    committed: StateModel
    present: StateModel


class LockOrderError(StateError):
    """A State inside a State adds a model that comes before one that is held already.

    All States lock in one order, by the models' names and ids, so that none can wait in a circle.
    """

    fields: ClassVar[tuple[str, ...]] = ("model", "held")
    message = "{model} comes before {held}, which is held here: name both in the outer State"


class AlreadyHeld(LockOrderError):
    """A State inside a State names a model that is held here already."""

    fields = ("model",)
    message = "{model} is held here already: use the State that holds it"


class WouldDeadlock(LockOrderError):
    """A plain `with State(...)` would stop the event loop that it has to wait for."""

    fields = ("model",)
    message = (
        "{model} is held by, or promised to, another task of the event loop that runs here; "
        "use `async with`"
    )


class LockTimeout(StateError, TimeoutError):
    """A model's lock was not to be had within the time given."""

    fields = ("model", "timeout_s")
    message = "{model} was held by others for {timeout_s} s"


class SchemaTooNew(StateError):
    """A stored model was written by a newer program; it is left as it is."""

    fields = ("model", "stored", "known")
    message = "{model} is stored with schema version {stored}, this program knows {known}"


class CacheError(StateError, OSError):
    """A model's file could not be written, or not be read."""

    fields: ClassVar[tuple[str, ...]] = ("file", "reason")
    message = "cannot keep a model in {file}: {reason}"


class NullCachePathError(CacheError):
    """A model is to be kept as a file, and no folder was named."""

    fields = ("model",)
    message = (
        "{model} cannot be kept: set the environment variable MOAT_KV_CACHE_BASE_PATH to a folder"
    )


def stale(name: str, base: int, have: int, committed: Any, present: Any) -> StaleModel:
    """The error with both versions."""
    error = StaleModel(name, base, have)
    error.committed, error.present = committed, present
    return error
