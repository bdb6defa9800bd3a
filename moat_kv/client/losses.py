"""Being told that a write of one's own has lost.

`writing` says here which of a client's writes were kept by a server that is cut off. From the
first one on the server is asked to tell what became of them, and on each new line again, with the
ids of those that are still in doubt. Who wants to know iterates over `Client.conflicts()`; if
nobody does, each is a line in the log. Only bad news come: a write that is not told of either
stands, or was written over later, or lost where nobody could tell us.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from moat_kv import codec, errors
from moat_kv.client import lost, streams, subscription

if TYPE_CHECKING:
    from moat_kv.client.link import Link

logger = logging.getLogger(__name__)

#: So many of the latest writes are asked after on a new line.
ASKED = 1_000
#: So many conflicts wait for a slow reader; the oldest are dropped above that.
LIMIT = 1_000


class Losses(streams.Stream):
    """The writes of one client that a server keeps, and what is told of them."""

    action = "conflicts"

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        #: How many writes of this client were answered as pending.
        self.kept = 0
        self._ids: dict[str, None] = {}
        self._open = False
        self._readers: dict[Conflicts, None] = {}

    def note(self, id: str) -> None:
        """A write was answered as pending."""
        self.kept += 1
        self._ids[id] = None
        if len(self._ids) > ASKED:
            del self._ids[next(iter(self._ids))]
        if not self._open:
            self._open = True
            self._over = False
            self._link.open_stream(self)

    def ask(self) -> dict[str, Any]:
        return {"ids": list(self._ids)}

    def item(self, fields: dict[str, Any], value: bytes | None) -> None:
        if value is None:
            logger.warning("%d of our writes have lost, too many to be told", fields["lost"])
            return
        told = lost.of_value(codec.unpack(value))
        self._ids.pop(told.id, None)
        if not self._readers:
            winner = "a deletion" if told.winner is None else f"one from {told.winner.node}"
            logger.warning(
                "our write of %s (%s) has lost against %s; it is kept as a conflict",
                told.path,
                told.id,
                winner,
            )
        for reader in self._readers:
            reader.put(told)

    def ended(self, error: errors.MoatKvError | None) -> None:
        super().ended(error)
        self._open = False
        for reader in list(self._readers):
            reader.ended(error)

    def add(self, reader: Conflicts) -> None:
        self._readers[reader] = None

    def remove(self, reader: Conflicts) -> None:
        self._readers.pop(reader, None)


class Conflicts(subscription.Subscription[lost.LostWrite]):
    """`async with client.conflicts() as c: async for lost_write in c`.

    It asks for nothing on the line: `Losses` does, for all of them.
    """

    action = ""

    def __init__(self, link: Link, losses: Losses) -> None:
        super().__init__(link)
        self._losses = losses
        self._queue: deque[lost.LostWrite] = deque(maxlen=LIMIT)

    def put(self, told: lost.LostWrite) -> None:
        """One of our writes has lost."""
        self._queue.append(told)
        self.changed()

    def waiting(self) -> bool:
        return bool(self._queue)

    def take(self) -> lost.LostWrite:
        return self._queue.popleft()

    def begin(self) -> None:
        self._losses.add(self)

    def finish(self) -> None:
        self._losses.remove(self)
