"""Records and writes: what the log is made of, and what is asked of it.

Made by a server from a client's request (`Write`), turned into a `Record` by an engine, applied by
the tree. Values stay packed (msgpack bytes) all the way; nothing here decodes one. Named tuples
and slots rather than frozen dataclasses: these are made once per write on the hot path, where a
frozen dataclass costs four times as much.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from moat_kv.path import Path

#: The first element of system data (sessions, users, types); no plain action reaches it.
SYSTEM = None

#: A guard's revision that asks only that the entry exists, for records that are written once.
EXISTS = -1


class Record(NamedTuple):
    """One entry of the log: what was written where, as which revision, by whom, when."""

    rev: int
    """Network-wide revision, from 1, rising within an epoch. Below 0: see `pending_rev`."""
    path: Path
    value: bytes | None
    """The packed value; None is a tombstone (the entry was deleted)."""
    at: float
    """The engine's time of the write, seconds since 1970."""
    origin: str
    """`node:incarnation` of the server that took the write."""
    tick: int
    """That server's count of writes; `origin:tick` is the record's id."""
    session: str | None = None
    """The session that the entry belongs to and ends with."""
    expires_at: float | None = None
    """When the entry ends by itself, in the engine's time."""

    @property
    def id(self) -> str:
        return f"{self.origin}:{self.tick}"


def pending_rev(base: int) -> int:
    """What stands for the revision of a record that is pending on top of another one (0: none).

    Such a record is durable on one server, but not in the log yet, where it may still lose against
    another write. Its time is that server's.
    """
    return -1 - base


def base_rev(rev: int) -> int:
    """The revision itself, or the one that a pending record is on top of."""
    return rev if rev >= 0 else -1 - rev


class Guard(NamedTuple):
    """A write happens only while another entry still has that revision."""

    path: Path
    rev: int
    """The revision that the entry must have, or `EXISTS`."""
    kind: str = "guard"
    """Which error says that it does not hold: `guard`, `fence` or `session`."""


class Write:
    """One write that is asked of an engine; judged there, not when it is made."""

    #: See `LateWrite`.
    at: float | None = None
    after: int | None = None

    __slots__ = (
        "expect",
        "expires_at",
        "guards",
        "idem",
        "origin",
        "path",
        "session",
        "strict",
        "tick",
        "value",
        "void",
    )

    def __init__(
        self,
        path: Path,
        value: bytes | None,
        *,
        origin: str,
        tick: int,
        expect: int | None = None,
        idem: bool = False,
        guards: tuple[Guard, ...] = (),
        session: str | None = None,
        expires_at: float | None = None,
        strict: bool = False,
    ) -> None:
        self.path = path
        self.value = value  # packed; None deletes
        self.origin = origin
        self.tick = tick
        self.expect = expect  # None: whatever is there; 0: nothing may be there
        self.idem = idem  # the same packed value makes no new revision
        self.guards = guards
        self.session = session
        self.expires_at = expires_at
        self.strict = strict  # refused where it cannot be agreed upon at once
        #: Told by an engine that has kept it: a deletion of what was not there, as far as is known.
        self.void = False


class LateWrite(Write):
    """A write that a server kept while it was cut off, on its way into the log at last."""

    __slots__ = ("after", "at")

    def __init__(
        self,
        path: Path,
        value: bytes | None,
        *,
        origin: str,
        tick: int,
        at: float,
        after: int,
    ) -> None:
        super().__init__(path, value, origin=origin, tick=tick, strict=True)
        self.at = at  # when it was made, by the engine's time; seconds since 1970
        self.after = after  # the path's newest record must be this one, a deletion too; 0: none


class Head(Protocol):
    """The newest applied state of one path; a tree's node is one."""

    @property
    def rev(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def at(self) -> float: ...
    @property
    def origin(self) -> str: ...
    @property
    def tick(self) -> int: ...
