"""A record as the body of a message, and what a delivered message's reply subject tells of it.

Written by `nats_publish`, read by `nats_consumer`. Revision and time are not in the body: they are
the stream's. The record before it on its path is, so that whoever sees a path's records knows
whether any is missing between them. Pure.

A body is the msgpack array `[1, value or nil, origin, tick, prev, session or nil, expires_at or
nil, nth, size, at]`; what is nil, or belongs to a record that is no part of a group, is left out at
the end. `nth` of `size`: its place in an atomic group, whose records follow each other in the log.
`at`: when it was made, if it was kept for a while before it came into the log.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack

from moat_kv.entry import Record, Write
from moat_kv.path import Path

_FORMAT = 1
_pack = msgpack.Packer(autoreset=True).pack
_make = tuple.__new__


class NotOurs(ValueError):
    """A message that no server of this kind has written."""


# (Below these are made past NamedTuple's own constructor, which is Python: each record that comes
# needs three.)
class Delivered(NamedTuple):
    """A record as it came, with what is of use on the way in only."""

    record: Record
    prev: int
    """The revision of its path's record before it, 0 if there was none."""
    nth: int
    size: int
    """Its place in its group, from 0, and how many records the group has."""
    stored_at: float
    """As `Place.at`: a record may have been made before it was stored."""

    @property
    def group_end(self) -> int:
        """The revision of the group's last record."""
        return self.record.rev + self.size - 1 - self.nth


class Place(NamedTuple):
    """Where a consumer's message stands."""

    rev: int
    """In the stream."""
    number: int
    """Among what the consumer delivers, from 1."""
    at: float
    """When it was stored, seconds since 1970."""
    remaining: int
    """How many the consumer had to deliver after it."""


def body(write: Write, prev: int, nth: int = 0, size: int = 1) -> bytes:
    """The body of a write's message, at its place in a group."""
    fields: list[Any] = [_FORMAT, write.value, write.origin, write.tick, prev]
    if write.at is not None:
        fields += [write.session, write.expires_at, nth, size, write.at]
    elif size > 1:
        fields += [write.session, write.expires_at, nth, size]
    elif write.expires_at is not None:
        fields += [write.session, write.expires_at]
    elif write.session is not None:
        fields.append(write.session)
    packed: bytes = _pack(fields)
    return packed


def delivered(path: Path, place: Place, data: bytes) -> Delivered:
    """The record of a message. Raises NotOurs."""
    try:
        fields = msgpack.unpackb(data)
        if type(fields) is not list or not 5 <= len(fields) <= 10 or fields[0] != _FORMAT:
            raise NotOurs("not a record")
    except NotOurs:
        raise
    except (ValueError, msgpack.UnpackException) as exc:
        raise NotOurs(str(exc)) from exc
    _, value, origin, tick, prev = fields[:5]
    more = len(fields)
    session = fields[5] if more > 5 else None
    expires_at = fields[6] if more > 6 else None
    nth, size = fields[7:9] if more > 8 else (0, 1)
    at = min(place.at, fields[9]) if more > 9 else place.at
    record = _make(Record, (place.rev, path, value, at, origin, tick, session, expires_at))
    return _make(Delivered, (record, prev, nth, size, place.at))


def place(reply: bytes) -> Place | None:
    """What the reply subject of a consumer's message tells; None if it is none.

    `$JS.ACK.STREAM.CONSUMER.TIMES.REV.NUMBER.NANOSECONDS.REMAINING`, or with two tokens more before
    the stream's name (domain and account) and perhaps one more at the end.
    """
    if not reply.startswith(b"$JS.ACK."):
        return None
    tokens = reply.split(b".")
    if len(tokens) == 9:
        rev, number, nanoseconds, remaining = tokens[5:]
    elif len(tokens) > 10:
        rev, number, nanoseconds, remaining = tokens[7:11]
    else:
        return None
    return _make(Place, (int(rev), int(number), int(nanoseconds) / 1e9, int(remaining)))
