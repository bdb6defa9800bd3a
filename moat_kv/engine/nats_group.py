"""A group of writes on its way into the stream, from its submission to its answer.

Made and moved on by `nats_committing`; holds what is known, and decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from moat_kv.engine import base, nats_publish
from moat_kv.entry import Record, Write


class Item:
    """A group that was submitted, until it is answered."""

    __slots__ = (
        "conflicting",
        "done",
        "doubtful",
        "guards",
        "messages",
        "outcome",
        "records",
        "sent",
        "since",
        "writes",
    )

    def __init__(self, writes: Sequence[Write], done: base.Done) -> None:
        self.writes = writes
        self.done = done
        self.since = time.monotonic()
        self.outcome: base.Outcome | None = None
        #: It was sent.
        self.sent = False
        #: It got no answer, and may be in the log for all that is known.
        self.doubtful = False
        #: It was refused for the sake of a record that has not been seen.
        self.conflicting = False
        #: As it was judged last: what to send, and what each write then is; None: its message.
        self.guards: list[nats_publish.Message] = []
        self.messages: list[tuple[Write, nats_publish.Message]] = []
        self.records: list[Record | None] = []


def messages(items: Sequence[Item]) -> list[nats_publish.Message]:
    """Of several groups: the guards first, each once."""
    guards = {guard.expect_of: guard for item in items for guard in item.guards}
    return [*guards.values(), *[message for item in items for _, message in item.messages]]
