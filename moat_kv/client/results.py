"""What a client's calls hand out: results, rows, events, members.

Made by the other modules of the client from replies, whose values are decoded here. A missing value
is absent, not None: `"value" in result` says whether there is one. Pure values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from moat_kv import codec
from moat_kv.path import Path
from moat_kv.path_element import Element


class Chain(NamedTuple):
    """The opaque token that `get` and `set` give, and that `set(chain=...)` takes."""

    epoch: str
    rev: int


class Entry(Mapping[str, Any]):
    """What is known of an entry, as a mapping and by attribute.

    Keys, each there only if it is known: `path`, `value`, `rev` (0: the entry does not exist), `at`
    (the engine's time of the write, seconds since 1970), `id` (the record's), `chain`. A deletion's
    result also has `deleted`: whether there was something to delete.

    `pending`: the server has it durably, but is cut off from its network, or waits for it. It is
    not among the keys; `rev` is then that of what it is on top of, `at` the server's own time.
    """

    __slots__ = ("_epoch", "at", "deleted", "id", "path", "pending", "rev", "value")

    path: Path
    value: Any
    rev: int
    at: float
    id: str
    deleted: bool
    pending: bool

    def __init__(self, rev: int, epoch: str | None, *, pending: bool = False) -> None:
        self.rev = rev
        self.pending = pending
        # None: there is nothing now that a chain could go on from.
        self._epoch = epoch

    @property
    def chain(self) -> Chain | None:
        """Token for "only if nobody has written since".

        None where there is no entry; given back to `set`, that means "only if there still is none".
        """
        return Chain(self._epoch, self.rev) if self._epoch is not None and self.rev else None

    def __getitem__(self, key: str) -> Any:
        if key in _KEYS:
            try:
                return getattr(self, key)
            except AttributeError:
                pass
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return key in _KEYS and hasattr(self, str(key))

    def __iter__(self) -> Iterator[str]:
        return (key for key in _KEYS if hasattr(self, key))

    def __len__(self) -> int:
        return sum(1 for key in _KEYS if hasattr(self, key))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entry):
            return NotImplemented
        return type(self) is type(other) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]  # a value may be a list

    def __repr__(self) -> str:
        known = ", ".join(f"{key}={self[key]!r}" for key in self if key != "chain")
        return f"{type(self).__name__}({known}{', pending' if self.pending else ''})"


_KEYS = ("path", "value", "rev", "at", "id", "chain", "deleted")


class Result(Entry):
    """The answer to a read or a write, or one row of several (with `path`)."""

    __slots__ = ()


class WatchEvent(Entry):
    """A change, or a part of the state that was fetched. `path` is absolute.

    Without `value` the entry was deleted.
    """

    __slots__ = ()


def result_of(fields: dict[str, Any], value: bytes | None, epoch: str | None) -> Result:
    """A reply's fields and value. `epoch` None: a chain would mean "must not exist"."""
    result = Result(fields["rev"], epoch, pending=fields.get("pending", False))
    if "at" in fields:
        result.at = fields["at"]
        result.id = fields["id"]
    if "deleted" in fields:
        result.deleted = fields["deleted"]
    if value is not None:
        result.value = codec.unpack(value)
    return result


def row_of(row: list[Any], epoch: str) -> Result:
    """A stream's row `[path, value, rev, at, id]`, perhaps with `pending`."""
    return _fill(Result(row[2], epoch if row[1] is not None else None), row)


def event_of(row: list[Any], epoch: str) -> WatchEvent:
    """A watch's row; its path is absolute."""
    return _fill(WatchEvent(row[2], epoch if row[1] is not None else None), row)


_E = TypeVar("_E", bound=Entry)


def _fill(entry: _E, row: list[Any]) -> _E:
    entry.path, value, _rev, entry.at, entry.id, *pending = row
    entry.pending = bool(pending)
    if value is not None:
        entry.value = codec.unpack(value)
    return entry


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Everything up to this revision has been handed out; a watch can resume from here."""

    rev: int
    epoch: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The present state has been handed out completely; what follows are changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reset:
    """Changes may have been missed; the present state follows anew, then `Ready`.

    Entries that are not in it do not exist any more.
    """

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One child of a path: its name, whether it has a value, and how many children it has."""

    name: Element
    has_value: bool
    children: int


class Message:
    """A broadcast message: its `topic`, and its `value`, or its content as bytes, `raw`.

    Which of the two there is was chosen with `monitor(raw=...)`; the other attribute is absent.
    `raw` is what was given to `send(raw=...)`, or the msgpack of the value that was sent.
    """

    __slots__ = ("raw", "topic", "value")

    topic: Path
    value: Any
    raw: bytes

    def __init__(self, topic: Path, packed: bytes, *, raw: bool) -> None:
        self.topic = topic
        value = codec.unpack(packed)
        if raw:
            self.raw = value if isinstance(value, bytes) else packed
        else:
            self.value = value

    def __repr__(self) -> str:
        content = f"raw={self.raw!r}" if hasattr(self, "raw") else f"value={self.value!r}"
        return f"Message(topic={self.topic!r}, {content})"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberInfo:
    """A member of a group: its roles in order of their names, and what it told when joining."""

    roles: tuple[str, ...]
    info: Any


class Members(dict[str, MemberInfo]):
    """The members of a group, by name.

    `parted`: the server has been cut off from the network for longer than claims hold; it sees only
    its own clients, and whether others have what they had cannot be told.
    """

    parted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """The server at the other end, from its greeting."""

    node: str
    epoch: str
    version: str
    incarnation: str
    protocol: int
    revision: int
    """The newest revision when it greeted."""
    floor: int
    frame_limit: int
    """The longest frame that it takes, in bytes."""
    url: str
    """Where it was reached."""
