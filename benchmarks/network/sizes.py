"""How much each benchmark of networks does: full size, or so little that a test can run it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of things; every one is at least 1."""

    rounds: int
    """How often the contestants take turns; medians are over these."""
    calls: int
    """Calls one after the other in a round."""
    in_flight: int
    """Calls under way at a time, where there are several."""
    flight_calls: int
    """Calls in a round with several in flight."""
    replicas: tuple[int, ...]
    """How many NATS nodes have each record."""
    trees: tuple[int, ...]
    """How many entries the networks have that are compared with each other."""
    newcomers: tuple[int, ...]
    """How many entries newcomers load, of those in `trees`."""
    behind: int
    """How many records a server has missed."""
    servers: tuple[int, ...]
    clients: tuple[int, ...]
    idle_s: float
    """How long those who do nothing are watched, in seconds."""
    kills: int
    """How often the leading NATS node is killed."""
    kill_s: float
    """How long is looked after each, in seconds."""
    kill_nodes: int
    """How many NATS nodes there are; an only one is frozen for that time instead."""

    def with_rounds(self, rounds: int) -> Sizes:
        return dataclasses.replace(self, rounds=rounds)


FULL = Sizes(
    rounds=9,
    calls=200,
    in_flight=64,
    flight_calls=1_600,
    replicas=(1, 3),
    trees=(1_000, 10_000, 100_000, 1_000_000),
    newcomers=(100_000, 1_000_000),
    behind=100_000,
    servers=(1, 2, 4, 8, 16, 32),
    clients=(10, 100, 1_000, 5_000),
    idle_s=5.0,
    kills=3,
    kill_s=12.0,
    kill_nodes=3,
)

TINY = Sizes(
    rounds=1,
    calls=2,
    in_flight=4,
    flight_calls=8,
    replicas=(1,),
    trees=(20, 40),
    newcomers=(40,),
    behind=50,
    servers=(1, 2),
    clients=(1, 3),
    idle_s=0.2,
    kills=1,
    kill_s=1.5,
    kill_nodes=1,
)
