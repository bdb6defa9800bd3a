"""What a benchmark hands to the report: figures side by side, and aims with what they came to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Something to reach: `value` is to be at most, or with `at_least` at least, `limit`."""

    text: str
    value: float
    limit: float
    at_least: bool = False
    unit: str = ""
    """Of both numbers; a ratio has none."""

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A ratio round by round: its median, and between which figures half of the rounds are."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table."""

    what: str
    unit: str
    """`s` (shown as ms or µs where that fits), `1/s`, or `B`."""
    ours: float
    peers: Mapping[str, float] = field(default_factory=dict)
    """The same by others: `echo`, `SQLite`, `Redis`."""
    original: float | None = None
    """What MoaT-KV took for it."""
    aim: Aim | None = None
    ratio: Spread | None = None
    """How many times the first peer's figure ours is."""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        facts = dataclasses.asdict(self)
        if self.aim is not None:
            facts["aim"]["met"] = self.aim.met
        return facts
