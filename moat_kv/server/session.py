"""One session: whose line it is on, since when, and when it is over.

Made and kept by `sessions`, and by `estates` for one that comes from another server. Does nothing
by itself, and writes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

import anyio

from moat_kv.entry import SYSTEM
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.server.connection import Connection

#: Where the sessions' records are.
PLACE = Path(SYSTEM, "session")


class Session:
    """One live session."""

    __slots__ = (
        "broken_at",
        "connection",
        "ended",
        "grace_s",
        "heard_at",
        "id",
        "recorded",
        "rev",
        "secret_hash",
        "ttl_s",
    )

    def __init__(self, id: str, secret_hash: str, ttl_s: float, grace_s: float) -> None:
        self.id = id
        self.secret_hash = secret_hash
        self.ttl_s = ttl_s
        self.grace_s = grace_s
        self.connection: Connection | None = None
        self.heard_at = anyio.current_time()
        self.broken_at: float | None = None
        self.recorded = False
        #: The record's revision, as soon as it was applied; where several servers share the tree.
        self.rev = 0
        self.ended = False

    @property
    def path(self) -> Path:
        return PLACE / self.id

    def overdue(self, now: float) -> str | None:
        """Why it is over, if it is."""
        if self.broken_at is not None and now - self.broken_at >= self.grace_s:
            return f"its line has been broken for {self.grace_s:g} s"
        if now - self.heard_at >= self.ttl_s:
            return f"it has been silent for {self.ttl_s:g} s"
        return None


def fits(secret_hash: str, secret: str) -> bool:
    """Whether this is the secret of a session."""
    return hmac.compare_digest(secret_hash, hash_of(secret))


def hash_of(secret: str) -> str:
    """What is kept of a secret, also in the record."""
    return hashlib.sha256(secret.encode()).hexdigest()
