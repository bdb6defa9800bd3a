"""Which node of a group takes a job that any of them may run. Pure; `supervision` asks it.

Every node sees the same members and computes the same order, so the first one claims at once and
the others wait their turn; the claim itself decides, this only keeps them from all asking at once
and spreads the jobs. Rendezvous hashing: a node that comes or goes moves only its own jobs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

#: How long each place in the order waits for those before it, in seconds. Long enough for a claim
#: to be written and seen; the sum is what a dead node that is still listed costs.
TURN_S = 0.25
#: How long a node that cannot run the job itself (a package is missing) lets others go first.
UNFIT_S = 2.0


def order(job: bytes, candidates: Iterable[str]) -> list[str]:
    """The candidates, the one who should take the job first. `job` is its packed path."""

    def weight(name: str) -> bytes:
        return hashlib.blake2b(job, key=hashlib.sha256(name.encode()).digest()).digest()

    return sorted(set(candidates), key=lambda name: (weight(name), name))


def wait_s(job: bytes, candidates: Iterable[str], *, own_name: str, fit: bool = True) -> float:
    """How long this node waits, from when the job is due, before it asks for the claim."""
    turn = order(job, {*candidates, own_name}).index(own_name)
    return turn * TURN_S + (0.0 if fit else UNFIT_S)
