"""Coordination for who has an event loop; `moat_kv.coord` is the same for plain threads."""

from moat_kv.coord.aio.barrier import Barrier
from moat_kv.coord.aio.cache import LruCache
from moat_kv.coord.aio.election import Election, Leader
from moat_kv.coord.aio.lock import Lock
from moat_kv.coord.aio.model import Model
from moat_kv.coord.aio.process import Process
from moat_kv.coord.aio.reference import Reference
from moat_kv.coord.aio.update import ConflictFreeUpdate, Update
from moat_kv.coord.fields import Diff, Last, ListAppend, Max, Min, SetAppend, Sum, WindowedList
from moat_kv.errors import AlreadyLocked, LockLost

__all__ = [
    "AlreadyLocked",
    "Barrier",
    "ConflictFreeUpdate",
    "Diff",
    "Election",
    "Last",
    "Leader",
    "ListAppend",
    "Lock",
    "LockLost",
    "LruCache",
    "Max",
    "Min",
    "Model",
    "Process",
    "Reference",
    "SetAppend",
    "Sum",
    "Update",
    "WindowedList",
]
