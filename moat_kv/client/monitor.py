"""Monitors: broadcast messages, which are not stored, as they come.

Used through `Client.monitor`. What is sent while the line is broken, or while more than `LIMIT`
wait, is lost; `lost` counts those that are known of.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Self

from moat_kv.client import results, streams
from moat_kv.path import Path

if TYPE_CHECKING:
    from types import TracebackType

    from moat_kv.client.link import Link

#: So many messages wait for a slow reader; the oldest are dropped above that.
LIMIT = 1_000


class Monitor(streams.Stream):
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
        self._waiting: deque[tuple[Path, bytes]] = deque()

    async def __aenter__(self) -> Self:
        self._link.open_stream(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._link.close_stream(self)
        self._over = True
        self.changed()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> results.Message:
        while True:
            while not self._waiting:
                if self._error is not None:
                    raise self._error
                if self._over:
                    raise StopAsyncIteration
                await self.wait()
            topic, packed = self._waiting.popleft()
            return results.Message(topic, packed, raw=self._raw)

    def ask(self) -> dict[str, Any]:
        return self._arguments

    def item(self, fields: dict[str, Any], value: bytes | None) -> None:
        self.lost += fields.get("lost", 0)
        if value is None:
            return
        if len(self._waiting) >= LIMIT:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append((fields["topic"], value))
        self.changed()
