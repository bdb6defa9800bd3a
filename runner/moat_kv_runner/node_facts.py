"""What a runner tells its group of its node: tags, weight, load. It travels with its membership.

`serving` tells it, and reads that of the others; `placing` decides by it. A runner of another
program, or none that says anything, counts as a plain node.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: How often the load is looked at, in seconds; it is told when it has changed.
LOOK_S = 10.0


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """One node, as others see it."""

    tags: frozenset[str] = frozenset()
    """What it has that jobs may ask for, such as `1wire`."""
    weight: float = 1.0
    """How many jobs it takes beside others; 0: only those that no other node takes."""
    load: float = 0.0
    """How busy its processors are, from 0 to 1, in tenths."""

    def as_info(self) -> dict[str, Any]:
        """What is told."""
        return {"tags": sorted(self.tags), "weight": self.weight, "load": self.load}


def parse(info: Any) -> NodeFacts:
    """What a member has told; what is not understood counts as not said."""
    if not isinstance(info, Mapping):
        return NodeFacts()
    tags = info.get("tags")
    given = tags if isinstance(tags, list | tuple) else ()
    return NodeFacts(
        tags=frozenset(tag for tag in given if isinstance(tag, str)),
        weight=_number(info.get("weight"), 1.0),
        load=min(_number(info.get("load"), 0.0), 1.0),
    )


def _number(value: Any, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return default
    return max(0.0, float(value))


def own_load() -> float:
    """This node's load over the last minute."""
    try:
        waiting = os.getloadavg()[0]
    except OSError:  # the system does not say
        return 0.0
    return round(min(waiting / (os.cpu_count() or 1), 1.0), 1)
