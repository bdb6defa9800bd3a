"""Monitors: broadcast messages, which are not stored, as they come.

Used through `Client.monitor`. What is sent while the line is broken, or while more than `LIMIT`
wait, is lost; `lost` counts those that are known of.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from moat_kv.client import results, subscription
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.client.link import Link

#: So many messages wait for a slow reader; the oldest are dropped above that.
LIMIT = 1_000


class Monitor(subscription.Subscription[results.Message]):
    """`async with client.monitor(topic) as m: async for message in m`."""

    action = "monitor"

    def __init__(self, link: Link, topic: Path, *, raw: bool, max_depth: int) -> None:
        super().__init__(link)
        #: How many messages were dropped because the reader was slow.
        self.lost = 0
        self._arguments: dict[str, Any] = {"topic": topic}
        if max_depth != -1:
            self._arguments["max_depth"] = max_depth
        self._raw = raw
        self._queue: deque[tuple[Path, bytes]] = deque()

    def waiting(self) -> bool:
        return bool(self._queue)

    def take(self) -> results.Message:
        topic, packed = self._queue.popleft()
        return results.Message(topic, packed, raw=self._raw)

    def ask(self) -> dict[str, Any]:
        return self._arguments

    def item(self, fields: dict[str, Any], value: bytes | None) -> None:
        self.lost += fields.get("lost", 0)
        if value is None:
            return
        if len(self._queue) >= LIMIT:
            self._queue.popleft()
            self.lost += 1
        self._queue.append((fields["topic"], value))
        self.changed()
