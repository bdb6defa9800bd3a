"""Hashes of subtrees as a server answers them; see `tree.hashing` for what they are of.

Asked for by `reading.ReadCalls.hash`, compared by `comparing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moat_kv.client import streams
from moat_kv.path import Path
from moat_kv.tree import hashing
from moat_kv.tree.hashing import Sum

if TYPE_CHECKING:
    from moat_kv.client.link import Link


@dataclass(frozen=True, kw_only=True)
class SubtreeHash:
    """All entries at and below a path, by their hashes, as of one revision."""

    path: Path
    rev: int
    total: Sum
    """Of all; `total.packed` are 32 bytes, `total.entries` how many entries there are."""
    own: Sum
    """Of the entry at the path itself; none if it has no value."""
    children: Mapping[Path, Sum]
    """By name, a path of one element. Empty where there are buckets."""
    buckets: Mapping[bytes, Sum]
    """By the first bytes of the names' hashes, all of the same length."""

    @property
    def bucket_size(self) -> int:
        """How many bytes its buckets have; 0 if there are none."""
        return max(map(len, self.buckets), default=0)

    def bucketed(self, size: int) -> dict[bytes, Sum]:
        """Its children in buckets of so many bytes, as another server may have answered."""
        if self.buckets:
            return dict(self.buckets)
        found: dict[bytes, Sum] = {}
        for name, part in self.children.items():
            bucket = hashing.bucket_of(name.packed)[:size]
            found[bucket] = found.get(bucket, hashing.NOTHING) + part
        return found


class _HashAnswer(streams.Answer):
    """The rows of an answer to hash, and what its first part tells besides."""

    summary: dict[str, Any]

    def item(self, fields: dict[str, Any], value: bytes | None) -> None:
        if "rev" in fields:
            self.summary = fields
        super().item({"rows": fields.get("rows", [])}, value)


def _sum(packed: bytes, entries: int) -> Sum:
    return Sum(int.from_bytes(packed, "big"), entries)


async def ask(link: Link, path: Path, arguments: dict[str, Any]) -> SubtreeHash:
    """Ask for a hash and wait for all of it. Raises what a read may raise."""
    answer = _HashAnswer(link, "hash", arguments)
    link.open_stream(answer)
    try:
        rows = await answer.take_all()
    finally:
        link.close_stream(answer)
    summary = answer.summary
    own = summary["own"]
    parts = [(name, _sum(packed, entries)) for name, packed, entries in rows]
    return SubtreeHash(
        path=path,
        rev=summary["rev"],
        total=_sum(summary["hash"], summary["entries"]),
        own=hashing.NOTHING if own is None else _sum(own, 1),
        children={name: part for name, part in parts if isinstance(name, Path)},
        buckets={name: part for name, part in parts if isinstance(name, bytes)},
    )
