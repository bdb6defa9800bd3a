"""State models: typed objects that the parts of a program, and of a fleet, share.

`docs/state.md` tells how they are used and what is promised.
"""

from moat_kv.errors import Detached, StaleFence, Unknown
from moat_kv.state import metrics
from moat_kv.state.attributes import attribute, between, matches
from moat_kv.state.context import AsyncState, State, Subscription
from moat_kv.state.errors import (
    AlreadyHeld,
    CacheError,
    LockOrderError,
    LockTimeout,
    ModelNotFound,
    NullCachePathError,
    RefusedValue,
    SchemaTooNew,
    StaleModel,
    StateError,
    UninitializedStateError,
    WouldDeadlock,
)
from moat_kv.state.model import Instance, StateModel, model_of
from moat_kv.state.registry import Models
from moat_kv.state.settling import asettle, settle
from moat_kv.state.sharing import Attachment, attach

__all__ = [
    "AlreadyHeld",
    "AsyncState",
    "Attachment",
    "CacheError",
    "Detached",
    "Instance",
    "LockOrderError",
    "LockTimeout",
    "ModelNotFound",
    "Models",
    "NullCachePathError",
    "RefusedValue",
    "SchemaTooNew",
    "StaleFence",
    "StaleModel",
    "State",
    "StateError",
    "StateModel",
    "Subscription",
    "UninitializedStateError",
    "Unknown",
    "WouldDeadlock",
    "asettle",
    "attach",
    "attribute",
    "between",
    "matches",
    "metrics",
    "model_of",
    "settle",
]
