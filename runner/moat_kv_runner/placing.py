"""Which node of a group takes a job that any of them may run. Pure; `supervision` asks it.

Every node sees about the same members and computes about the same order, so the first one claims at
once and the others wait their turn; the claim itself decides, this only keeps them from all asking
at once. The node with the most room comes first. Where several have as much, rendezvous hashing
tells them apart: a node that comes or goes moves only its own jobs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from moat_kv_runner.node_facts import NodeFacts

#: How long each place in the order waits for those before it, in seconds. Long enough for a claim
#: to be written and seen; the sum is what a dead node that is still listed costs.
TURN_S = 0.25
#: How long a node that cannot run the job itself (a package is missing) lets others go first.
UNFIT_S = 2.0
#: A node is never counted busier than this, so that one always has some room.
_BUSIEST = 0.9


class Spec(Protocol):
    """What a job's entry says of nodes; `job.JobSpec` has more."""

    @property
    def require(self) -> Collection[str]: ...
    @property
    def prefer(self) -> Collection[str]: ...


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A node that may take jobs."""

    name: str
    facts: NodeFacts = field(default_factory=NodeFacts)
    jobs: int = 0
    """How many jobs of the group it has now."""

    @property
    def room(self) -> float:
        """How much it can take yet, from 0; the largest comes first."""
        return self.facts.weight * (1 - min(self.facts.load, _BUSIEST)) / (1 + self.jobs)


def suits(spec: Spec, facts: NodeFacts) -> bool:
    """Whether a node has all that the job requires."""
    return facts.tags.issuperset(spec.require)


def order(job: bytes, candidates: Iterable[Candidate], spec: Spec) -> list[str]:
    """The names of those that suit, the one that should take the job first.

    `job` is its packed path. What it prefers goes before room.
    """

    def rank(node: Candidate) -> tuple[int, float, bytes, str]:
        name = node.name
        lot = hashlib.blake2b(job, key=hashlib.sha256(name.encode()).digest()).digest()
        return (-len(node.facts.tags.intersection(spec.prefer)), -node.room, lot, name)

    able = {node.name: node for node in candidates if suits(spec, node.facts)}
    return [node.name for node in sorted(able.values(), key=rank)]


def wait_s(
    job: bytes, candidates: Iterable[Candidate], spec: Spec, *, own_name: str, fit: bool = True
) -> float:
    """How long this node, which is among them, waits before it asks for the claim.

    Counted from when the job is due.
    """
    turn = order(job, candidates, spec).index(own_name)
    return turn * TURN_S + (0.0 if fit else UNFIT_S)


def surplus(held: Mapping[str, int], weights: Mapping[str, float], own_name: str) -> int:
    """How many of its jobs a node gives up so that all have their shares, by weight.

    `held` is how many each has; nodes without a weight take none.
    """
    total, weight = sum(held.values()), sum(weights.values())
    if not weight:
        return 0
    share = math.ceil(total * weights.get(own_name, 0.0) / weight)
    return max(0, held.get(own_name, 0) - share)
