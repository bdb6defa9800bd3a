"""Coordination among processes, for plain threads; `moat_kv.coord.aio` is the same for async code.

Locks, semaphores, elections and barriers of a whole network; references and updates in the manner
of phonon; aggregates. `docs/coord.md` tells what is promised.
"""

from moat_kv.coord.aio.election import Leader
from moat_kv.coord.cache import LruCache
from moat_kv.coord.fields import Diff, Last, ListAppend, Max, Min, SetAppend, Sum, WindowedList
from moat_kv.coord.lock import Barrier, Election, Lock
from moat_kv.coord.model import Model
from moat_kv.coord.process import Process
from moat_kv.coord.reference import Reference
from moat_kv.coord.update import ConflictFreeUpdate, Update
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
