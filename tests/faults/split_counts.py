"""What `split_network` counts in all its rounds, and how it tells."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

KINDS = ("two", "three", "one-way", "flapping", "pair")


@dataclass(kw_only=True)
class Counts:
    """What was seen in all rounds."""

    splits: Counter[str] = field(default_factory=Counter)
    contested: int = 0
    by_time: int = 0
    """Contested entries of which it was known who had to win."""
    winner_first: int = 0
    loser_first: int = 0
    """Of two servers that were cut off, that of the newer write was back first, or the other."""
    deleted: int = 0
    sessions_kept: int = 0
    """Times that a session lived on over a split; of all servers, those without a majority too."""
    sessions_over: int = 0
    """Sessions that their servers had to give up."""
    refused: int = 0
    slowest_refusal_s: float = 0.0
    left_open: int = 0
    """Strict writes of minorities that were answered `Unknown`: sent before the split was noticed,
    they may get there."""
    slowest_left_open_s: float = 0.0
    slowest_notice_s: float = 0.0
    slowest_heal_s: float = 0.0
    wrong: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """What was right, but not in time."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{self.splits[kind]} {kind}" for kind in KINDS)
        return (
            f"{self.splits.total()} splits ({kinds}): {self.contested} contested entries,"
            f" {self.by_time} of them with a known winner (back first {self.winner_first} times,"
            f" last {self.loser_first} times); {self.deleted} deleted ones;"
            f" {self.refused} strict writes of minorities refused, the slowest after"
            f" {self.slowest_refusal_s:.1f} s, {self.left_open} answered Unknown, the slowest after"
            f" {self.slowest_left_open_s:.1f} s; split noticed after {self.slowest_notice_s:.1f} s"
            f" at most, equal {self.slowest_heal_s:.1f} s after a heal at most;"
            f" {self.sessions_kept} times a session lived on, {self.sessions_over} given up when"
            " their leases were over;"
            f" {len(self.wrong)} wrong, {len(self.late)} late"
        )
