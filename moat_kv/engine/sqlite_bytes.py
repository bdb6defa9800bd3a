"""What can be told of a log from its bytes alone, before SQLite opens it. Reads, never writes.

Called by `engine.sqlite_store` at start. Two things escape SQLite itself: whose file it is, and a
write-ahead log (WAL) that is damaged in the middle, of which SQLite keeps what comes before the
damage and drops the rest in silence, acknowledged commits among it.

The layouts are those of https://www.sqlite.org/fileformat2.html, sections 1.3 and 4.
"""

from __future__ import annotations

import pathlib
import struct

#: In the header of every log of ours, "mkvl".
APPLICATION_ID = 0x6D6B766C
#: The layout of tables that this program writes, kept in the header's `user_version`.
SCHEMA = 1

_HEADER_BYTES = 100
_WAL_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")
#: A longer WAL, left over from a disk that was full for long, is not read by this slow code.
_WAL_LIMIT_BYTES = 64 << 20


def header_fault(file: pathlib.Path) -> str | None:
    """Why the file's header is not that of a log which this program can read; None if it is."""
    with file.open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
    if not header:
        return "it is empty"
    if len(header) < _HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
        return "it is not an SQLite database"
    schema, application_id = struct.unpack_from(">I4xI", header, 60)
    if application_id != APPLICATION_ID:
        return f"it is not a log of moat-kv (application id {application_id:#010x})"
    if not 1 <= schema <= SCHEMA:
        return f"its layout is version {schema}, and this program knows none above {SCHEMA}"
    return None


def wal_fault(wal: pathlib.Path) -> str | None:
    """Why the WAL has lost something that had been synced; None if it has not.

    A crash tears the WAL's last commit at most, because the log syncs each commit before it begins
    the next one, and resets the WAL after one that failed. So two commits at or behind the first
    frame whose checksum is wrong are damage, and one is not.
    """
    data = wal.read_bytes() if 0 < wal.stat().st_size <= _WAL_LIMIT_BYTES else b""
    if len(data) < _WAL_HEADER.size:
        return None
    magic, _version, page_size, _count, *salts, sum0, sum1 = _WAL_HEADER.unpack_from(data)
    if not any(data[: _WAL_HEADER.size]):
        return None  # never synced: the power failed before the first commit was on disk
    order = ">" if magic & 1 else "<"
    running = _summed(order, data[:24], (0, 0))
    if magic & ~1 != 0x377F0682 or running != (sum0, sum1):
        return "the header of its write-ahead log is damaged"
    torn = False
    commits_behind = 0
    size = _FRAME_HEADER.size + page_size
    for start in range(_WAL_HEADER.size, len(data) - size + 1, size):
        _page, commit, *frame_salts, sum0, sum1 = _FRAME_HEADER.unpack_from(data, start)
        if not torn:
            body = data[start + _FRAME_HEADER.size : start + size]
            running = _summed(order, data[start : start + 8] + body, running)
            torn = frame_salts != salts or running != (sum0, sum1)
        if torn and commit and frame_salts == salts:
            commits_behind += 1
    if commits_behind >= 2:
        return f"its write-ahead log is damaged before {commits_behind} commits"
    return None


def _summed(order: str, data: bytes, start: tuple[int, int]) -> tuple[int, int]:
    sum0, sum1 = start
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for word0, word1 in zip(words, words, strict=True):
        sum0 = (sum0 + word0 + sum1) & 0xFFFFFFFF
        sum1 = (sum1 + word1 + sum0) & 0xFFFFFFFF
    return sum0, sum1
