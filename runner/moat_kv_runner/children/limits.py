"""How much a child may take; pure but for `apply`, which a child calls on itself.

Memory, processor time and open files are limits that the system keeps, for each process of a job by
itself. The number of processes is counted by the job's keeper, because the system's own limit
counts all processes of a user, and does not bind root.
"""

from __future__ import annotations

import dataclasses
import math
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moat_kv import errors

#: Between the signal that says "processor time is over" and the one that cannot be caught.
CPU_MARGIN_S = 5
#: More than a machine has of anything; in bytes it is still a number for the system.
MOST = 10**12


@dataclass(frozen=True, kw_only=True)
class Limits:
    """0: no limit."""

    memory_mb: float = 512
    """Private memory, of each process of the job."""
    cpu_s: float = 0
    """Processor time, of each process of the job."""
    files: float = 1024
    """Open at a time, of each process; at least 16, which a run itself needs."""
    processes: float = 64
    """Of the job, threads not counted."""


NAMES = tuple(item.name for item in dataclasses.fields(Limits))


def checked(value: Any, name: str) -> dict[str, float]:
    """Some limits, by name. Raises BadValue."""
    if not isinstance(value, Mapping):
        raise errors.BadValue(f"{name}: a mapping of {', '.join(NAMES)} is needed")
    known = ", ".join(NAMES)
    for key, each in value.items():
        if key not in NAMES:
            raise errors.BadValue(f"{name}.{key}: there is no such limit; there are {known}")
        is_number = isinstance(each, int | float) and not isinstance(each, bool)
        if not is_number or not math.isfinite(each) or each < 0:
            raise errors.BadValue(f"{name}.{key}: 0 (none) or more, not {each!r}")
        if each > MOST:
            raise errors.BadValue(f"{name}.{key}: at most {MOST}, not {each!r}")
        if key in ("files", "processes") and each != int(each):
            raise errors.BadValue(f"{name}.{key}: a whole number is needed, not {each!r}")
    if 0 < value.get("files", 0) < 16:
        raise errors.BadValue(f"{name}.files: at least 16, or 0 for no limit")
    if 0 < value.get("memory_mb", 0) < 32:
        raise errors.BadValue(f"{name}.memory_mb: at least 32, or 0 for no limit")
    return dict(value)


def of(values: Mapping[str, Any]) -> Limits:
    """All limits, from those that were said."""
    return Limits(**checked(values, "limits"))


def apply(limits: Limits) -> None:
    """Bind this process, and all that it will start."""
    _bind(resource.RLIMIT_CORE, 0)
    if limits.memory_mb:
        # Not the address space: allocators and threads reserve much of that and use little.
        _bind(resource.RLIMIT_DATA, int(limits.memory_mb * 1024 * 1024))
    if limits.cpu_s:
        seconds = max(1, math.ceil(limits.cpu_s))
        _bind(resource.RLIMIT_CPU, seconds, seconds + CPU_MARGIN_S)
    if limits.files:
        _bind(resource.RLIMIT_NOFILE, int(limits.files))


def _bind(which: int, soft: int, hard: int | None = None) -> None:
    _, ceiling = resource.getrlimit(which)
    hard = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(which, (soft, hard))
