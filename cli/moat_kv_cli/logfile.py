"""The file of `log save` and `log restore`: a whole tree, with checks. No network here.

A line that names the format, then blocks: length and CRC-32 of a payload, 4 bytes each, big-endian,
and the payload, msgpack. The first payload is the header, a mapping with `epoch`, `revision`
(when saving began), `node`, `version` and `at`; then come records `[path, value or nil, rev, at]`,
path and value packed, nil for an entry that was deleted while saving went on (a later record of a
path replaces an earlier one); the last is a mapping with `end`: the revision up to which
everything is in the file, `records`: how many, and `crc`: over all payloads before it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

import msgpack

from moat_kv import errors
from moat_kv.path import Path

MAGIC = b"moat-kv log 1\n"
#: More than any record can have; a length above it is damage.
LIMIT_BYTES = 64 * 1024 * 1024

_HEAD = struct.Struct(">II")


class Saved(NamedTuple):
    """One record."""

    path: Path
    value: bytes | None
    """Packed; None deletes."""
    rev: int
    at: float


class Writer:
    """Writes one file: header, records, end."""

    def __init__(self, file: IO[bytes], header: Mapping[str, Any]) -> None:
        self._file = file
        self._crc = 0
        self.records = 0
        file.write(MAGIC)
        self._block(dict(header))

    def add(self, record: Saved) -> None:
        self._block([record.path.packed, record.value, record.rev, record.at])
        self.records += 1

    def end(self, revision: int) -> None:
        """Without this the file counts as cut short."""
        self._block({"end": revision, "records": self.records, "crc": self._crc})

    def _block(self, content: Any) -> None:
        payload = msgpack.packb(content)
        self._file.write(_HEAD.pack(len(payload), zlib.crc32(payload)))
        self._file.write(payload)
        self._crc = zlib.crc32(payload, self._crc)


def read(file: IO[bytes], name: str) -> Iterator[Mapping[str, Any] | Saved]:
    """The header, then every record, then the last mapping.

    Raises StorageDamaged, naming the file and the place, for anything but a whole file.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise errors.StorageDamaged(name, "it is no saved log")
    crc = records = 0
    started = False
    while True:
        before = crc
        payload = _payload(file, name)
        crc = zlib.crc32(payload, crc)
        content = _content(payload, file, name)
        if isinstance(content, Saved):
            if not started:
                raise _damaged(file, name, "the header is missing")
            records += 1
            yield content
        elif not started:
            started = True
            yield content
        else:
            if (content.get("records"), content.get("crc")) != (records, before):
                raise _damaged(file, name, "records are missing")
            if file.read(1):
                raise _damaged(file, name, "there is more after the end")
            yield content
            return


def _payload(file: IO[bytes], name: str) -> bytes:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise _damaged(file, name, "it is cut short")
    size, crc = _HEAD.unpack(head)
    if size > LIMIT_BYTES:
        raise _damaged(file, name, f"a record of {size} bytes cannot be")
    payload = file.read(size)
    if len(payload) < size:
        raise _damaged(file, name, "it is cut short")
    if zlib.crc32(payload) != crc:
        raise _damaged(file, name, "the checksum of a record is wrong")
    return payload


def _content(payload: bytes, file: IO[bytes], name: str) -> Mapping[str, Any] | Saved:
    try:
        content = msgpack.unpackb(payload)
        if isinstance(content, dict):
            return content
        path, value, rev, at = content
        return Saved(Path.unpack(path), value, rev, at)
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        raise _damaged(file, name, f"a record means nothing: {exc}") from exc


def _damaged(file: IO[bytes], name: str, reason: str) -> errors.StorageDamaged:
    try:
        where = f" (at byte {file.tell()})"
    except OSError:  # a pipe
        where = ""
    return errors.StorageDamaged(name, reason + where)
