"""How much each benchmark does: full size, or so little that a test can run it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Numbers of things; every one is at least 1."""

    rounds: int
    """How often the contestants take turns; medians are over these."""
    calls: int
    """Calls one after the other in a round."""
    in_flight: int
    """Calls under way at a time, where there are several."""
    flight_calls: int
    """Calls in a round with several in flight."""
    paths: int
    """How many entries are read and written over again and again."""
    watchers: tuple[int, ...]
    loads: tuple[int, ...]
    """How many entries are loaded through `batch`, one after the other into new servers."""
    tree: int
    """How many entries `get_tree` reads."""
    start: int
    """How many entries are in the file that a server starts from."""
    mirror_reads: int
    jobs: int
    """How many jobs a node has that only wait, and for how many seconds it is looked at."""
    idle_s: float

    def with_rounds(self, rounds: int) -> Scale:
        return dataclasses.replace(self, rounds=rounds)


FULL = Scale(
    rounds=11,
    calls=300,
    in_flight=64,
    flight_calls=6_400,
    paths=1_000,
    watchers=(1, 100, 1_000),
    loads=(10_000, 100_000, 1_000_000),
    tree=100_000,
    start=1_000_000,
    mirror_reads=100_000,
    jobs=200,
    idle_s=20.0,
)

TINY = Scale(
    rounds=2,
    calls=4,
    in_flight=4,
    flight_calls=16,
    paths=8,
    watchers=(1, 3),
    loads=(1_500,),
    tree=1_500,
    start=1_500,
    mirror_reads=100,
    jobs=2,
    idle_s=0.5,
)
