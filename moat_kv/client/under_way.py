"""What is under way on a line to a server: calls, streams, and how they fail with the line.

Made by `connection` and kept there by seq. `link` makes of the failures what users get to see.
"""

from __future__ import annotations

from typing import Any, Protocol

from moat_kv import errors, waiting
from moat_kv.proto import messages


class LineBroken(Exception):
    """The line is gone. `sent`: the request may have reached the server."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class Overdue(Exception):
    """No answer in time. `sent`: the request may have reached the server."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__()
        self.sent = sent


class Stream(Protocol):
    """Takes the answers to one request that has many. Nothing here may block or raise."""

    #: Its consumer lags so far that reading may pause, if nothing else is under way.
    lagging: bool

    def started(self, fields: dict[str, Any]) -> None:
        """It begins."""

    def item(self, fields: dict[str, Any], value: bytes | None) -> None:
        """The next part."""

    def ended(self, error: errors.MoatKvError | None) -> None:
        """The server has ended it; None: as it should."""

    def interrupted(self, reason: str) -> None:
        """The line broke."""


class Call:
    """One answer that somebody waits for: `done` is set with a reply, or with why there is none."""

    __slots__ = ("done", "failure", "reply", "sweep")

    def __init__(self, done: waiting.Waiter, sweep: int | None) -> None:
        self.done = done
        self.reply: messages.Reply | None = None
        self.failure: Exception | None = None
        # The sweep at which it began; None if it is never overdue.
        self.sweep = sweep
