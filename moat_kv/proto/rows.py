"""Rows: entries as they stand in the parts of a stream.

A row is `[path, value, rev, at, id]`, with the value as a byte string, or nil for a deletion; one
that is pending has a sixth element, true, and as `rev` that of what it is on top of. A row is
packed once, however many watchers get it; `item` puts packed rows into a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from moat_kv import entry
from moat_kv.entry import Head, Record
from moat_kv.proto import frames, messages

_pack = msgpack.Packer(autoreset=True).pack
_header = msgpack.Packer(autoreset=True)


def pack_row(packed_path: bytes, head: Head | Record) -> bytes:
    """One row, for a path that is packed already."""
    path = msgpack.ExtType(messages.PATH_EXTENSION, packed_path)
    fields = [path, head.value, head.rev, head.at, f"{head.origin}:{head.tick}"]
    if head.rev < 0:
        fields[2] = entry.base_rev(head.rev)
        fields.append(True)
    row: bytes = _pack(fields)
    return row


def facts(head: Head | Record) -> dict[str, Any]:
    """`rev`, `at` and `id`, and `pending` if it is, as they stand in a reply."""
    fields = {"rev": head.rev, "at": head.at, "id": f"{head.origin}:{head.tick}"}
    if head.rev < 0:
        fields["rev"] = entry.base_rev(head.rev)
        fields["pending"] = True
    return fields


def pack_item(seq: int, rows: Sequence[bytes], fields: dict[str, Any]) -> bytes:
    """A stream's part, with rows that are packed already and further fields."""
    parts = [
        b"\x94",
        _pack(seq),
        _pack(int(messages.State.ITEM)),
        _header.pack_map_header(len(fields) + bool(rows)),
    ]
    for name, content in fields.items():
        parts.append(_pack(name))
        parts.append(_pack(content))
    if rows:
        parts.append(_pack("rows"))
        parts.append(_header.pack_array_header(len(rows)))
        parts.extend(rows)
    parts.append(b"\xc0")
    return frames.frame(b"".join(parts))
