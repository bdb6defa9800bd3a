"""A group of writes on its way into the stream, from its submission to its answer.

Made and moved on by `nats_committing`; holds what is known. Decides only which groups go together.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from moat_kv.engine import base, judge, nats_publish
from moat_kv.entry import Record, Write
from moat_kv.path import Path

#: One batch takes so many bytes at most; one group goes in whole, however large it is.
BATCH_BYTES = 4 << 20


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
        "told",
        "writes",
    )

    def __init__(self, writes: Sequence[Write], done: base.Done) -> None:
        self.writes = writes
        self.done = done
        self.since = time.monotonic()
        self.outcome: base.Outcome | None = None
        #: `done` has been called.
        self.told = False
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

    def tell(self) -> None:
        """Hand the outcome to who asked, once."""
        if not self.told and self.outcome is not None:
            self.told = True
            self.done(self.outcome)


def take(waiting: deque[Item]) -> list[Item]:
    """The next groups that have no path in common but as guards, off the queue; at least one.

    What is wrong with one whatever the log holds is its outcome.
    """
    if len(waiting) == 1:
        only = waiting.popleft()
        only.outcome = judge.unfit(only.writes)
        return [only]
    taken: list[Item] = []
    written: set[Path] = set()
    guarding: set[Path] = set()
    size_bytes = 0
    while waiting and size_bytes < BATCH_BYTES:
        item = waiting[0]
        item.outcome = judge.unfit(item.writes)
        paths = {write.path for write in item.writes}
        guards = {guard.path for write in item.writes for guard in write.guards}
        size = len(written | paths) + len(guarding | guards)
        touches = not written.isdisjoint(paths | guards) or not guarding.isdisjoint(paths)
        if taken and (touches or size > base.BATCH_LIMIT):
            break
        written |= paths
        guarding |= guards
        size_bytes += sum([len(write.value or b"") for write in item.writes])
        taken.append(waiting.popleft())
    return taken


def messages(items: Sequence[Item]) -> list[nats_publish.Message]:
    """Of several groups: the guards first, each once."""
    guards = {guard.expect_of: guard for item in items for guard in item.guards}
    return [*guards.values(), *[message for item in items for _, message in item.messages]]
