"""Where the things of a resource live in the tree.

A resource is a name, one path element below the place of locks, or a path below it. Its lock, its
references and what is cached for it are further below, at elements that no resource may be called,
so that `a` and `a.b` are two resources that do not disturb each other. Pure.
"""

from __future__ import annotations

from moat_kv import errors
from moat_kv.path import Path

#: The line of those who hold a lock or wait for it.
LINE = ".line"
#: Who passed a barrier.
PASSED = ".passed"
#: The processes that have references, each with an entry of its own.
REFERENCES = ".refs"
#: How often it was modified.
TIMES = ".times"
#: What was merged so far, waiting for the last reference to go.
CACHED = ".cached"
#: What one process has merged so far, kept against its sudden end.
KEPT = ".kept"
#: What is to be executed, each by the id of its execution.
TODO = ".todo"
#: Aggregates: who takes part in a session, and what there is of it.
PARTS = ".parts"

RESERVED = frozenset({LINE, PASSED, REFERENCES, TIMES, CACHED, KEPT, TODO, PARTS})


def path_of(place: Path, resource: str | Path) -> Path:
    """Where a resource lives; `place` is that of locks. Raises BadPath."""
    below = resource if isinstance(resource, Path) else Path(resource)
    if not below:
        raise errors.BadPath("", "a resource has a name")
    for element in below:
        if element in RESERVED:
            raise errors.BadPath(str(below), f"{element} is the name of a part of each resource")
    return place + below


def name_of(resource: str | Path) -> str:
    """The resource as people know it."""
    return str(resource)
