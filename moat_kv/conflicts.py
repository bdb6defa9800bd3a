"""Conflicts as entries: the writes that lost against another one, with which, and when.

Written by `engine.network` when a server that was cut off is back; listed, restored and cleared
by the command line, as any entries are. A conflict's name is its record's id, so that writing it
once more, after a crash, changes nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from moat_kv import codec, errors
from moat_kv.path import P, Path

#: Below this place each conflict has an entry.
PLACE = P(":.moat.kv.conflict")
#: So many bytes a conflict takes beside the value, at most, but for the two paths.
OVERHEAD_BYTES = 512


class Side(NamedTuple):
    """One of the two writes."""

    id: str
    """Of its record, `node:incarnation:tick`."""
    at: float
    """When it was made, in the engine's time; seconds since 1970."""

    @property
    def node(self) -> str:
        return self.id.rsplit(":", 2)[0]


class Conflict(NamedTuple):
    """A write that is not in the tree, though it was answered."""

    path: Path
    value: bytes | None
    """The packed value; None: it deleted."""
    loser: Side
    winner: Side | None
    """None: the entry was deleted meanwhile, so long ago that it is not known by whom."""

    @property
    def place(self) -> Path:
        return PLACE / self.loser.id


def pack(conflict: Conflict) -> bytes:
    """The entry's value: a mapping of `path`, `id`, `at`, `node`, perhaps `value`, `winner`."""
    fields: dict[str, Any] = {
        "path": conflict.path,
        "id": conflict.loser.id,
        "at": conflict.loser.at,
        "node": conflict.loser.node,
    }
    if conflict.winner is not None:
        winner = conflict.winner
        fields["winner"] = {"id": winner.id, "at": winner.at, "node": winner.node}
    packed = codec.pack(fields)
    if conflict.value is None:
        return packed
    # The value is packed already and must come out as it went in: another item of the mapping.
    assert packed[0] & 0xF0 == 0x80  # a mapping of at most 15 items
    return bytes([packed[0] + 1]) + packed[1:] + codec.pack("value") + conflict.value


def unpack(value: bytes) -> Conflict:
    """The conflict in an entry's value. Raises BadValue."""
    fields = codec.unpack(value)
    try:
        winner = fields.get("winner")
        return Conflict(
            path=fields["path"],
            value=codec.pack(fields["value"]) if "value" in fields else None,
            loser=Side(fields["id"], fields["at"]),
            winner=None if winner is None else Side(winner["id"], winner["at"]),
        )
    except (AttributeError, KeyError, TypeError) as exc:
        raise errors.BadValue(f"not a conflict: {exc!r}") from None
