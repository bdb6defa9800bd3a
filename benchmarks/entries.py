"""What the entries of all benchmarks look like: a sensor's reading, three names deep."""

from __future__ import annotations

from moat_kv import codec
from moat_kv.path import Path

BASE = Path("bench")
VALUE = {"temp": 21.5, "unit": "C"}
PACKED = codec.pack(VALUE)
#: So many entries share a parent.
FAMILY = 1_000


def path(number: int) -> Path:
    """The path of one entry."""
    group, place = divmod(number, FAMILY)
    return Path("bench", f"house{group}", f"sensor{place}")


def paths(count: int) -> list[Path]:
    return [path(number) for number in range(count)]
