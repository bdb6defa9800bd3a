"""The queue that a script reads as `_info`: bounded, and conflated where that loses nothing.

`admin` puts in what watches, monitors, timers and the group have to say; the script takes it out,
in the same event loop. What may wait:

- the group's state: one; a newer one takes its place;
- `ReadyMsg`: one beside `ReadyMsg(0)`; a newer one goes to the end;
- a watch's changes: one for each path, a newer one takes its place, so that no path's state comes
  later than a `ReadyMsg` that followed it; the watch waits while there is no room for a new path;
- everything else (timers, monitored messages, the script's own) as it comes.

Changes and everything else count against the limit. A message that cannot wait, and finds no room,
ends the queue: `None` is the last message.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import anyio

#: How many messages may wait, unless the configuration says otherwise.
LIMIT = 100

_STATE = "state"
_START = "start"
_READY = "ready"


class InfoQueue:
    """See above. `async for message in queue`; more than one reader share the messages."""

    def __init__(self, limit: int = LIMIT) -> None:
        if limit < 1:
            raise ValueError("the queue holds at least one message")
        #: Called with each message that the script takes; for those who look on.
        self.on_taken: Callable[[Any], None] | None = None
        self._limit = limit
        # A dict keeps its order when a value is replaced: the heart of the conflation.
        self._waiting: dict[Hashable, Any] = {}
        self._counted = 0
        self._next_key = 0
        self._ended = False
        self._filled = anyio.Event()
        self._drained = anyio.Event()

    # The script's side ----------------------------------------------------------------------

    def qsize(self) -> int:
        """How many messages wait."""
        return len(self._waiting)

    async def get(self) -> Any:
        """The next message; `None` if the queue has stalled, which is the last one.

        Raises EndOfStream after that.
        """
        await anyio.lowlevel.checkpoint()
        while not self._waiting:
            if self._ended:
                raise anyio.EndOfStream
            await self._filled.wait()
        key = next(iter(self._waiting))
        message = self._waiting.pop(key)
        if _counts(key):
            self._counted -= 1
            self._drained.set()
            self._drained = anyio.Event()
        if self.on_taken is not None:
            self.on_taken(message)
        return message

    async def put(self, message: Any) -> None:
        """Add a message of the script's own; waits for room.

        Raises ClosedResourceError if the queue has stalled.
        """
        await anyio.lowlevel.checkpoint()
        await self._wait_for_room(None)
        self._add(self._new_key(), message)

    def __aiter__(self) -> InfoQueue:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.get()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    # The runner's side ----------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Nothing more is taken; the script may still read what waits."""
        return self._ended

    def push_state(self, message: Any) -> None:
        """The group's state; replaces one that waits."""
        if not self._ended:
            self._add(_STATE, message)

    def push_start(self, message: Any) -> None:
        """`ReadyMsg(0)`, once."""
        self._add(_START, message)

    def push_ready(self, message: Any) -> None:
        """A `ReadyMsg` for what was put in so far; one that still waits is out of date."""
        if not self._ended:
            self._waiting.pop(_READY, None)
            self._add(_READY, message)

    def push(self, message: Any, source: Hashable = None) -> bool:
        """A message that cannot wait. False if there was no room: the queue ends then."""
        if self._ended:
            return False
        if self._counted >= self._limit:
            self.end()
            return False
        self._add((source, self._new_key()), message)
        return True

    async def put_change(self, source: Hashable, path: Hashable, message: Any) -> bool:
        """A watch's change; replaces one of the same source and path, else waits for room.

        False if the queue has ended.
        """
        key = (source, path)
        try:
            await self._wait_for_room(key)
        except anyio.ClosedResourceError:
            return False
        self._add(key, message)
        return True

    def drop(self, source: object) -> None:
        """Forget what waits from a source that was cancelled."""
        for key in [key for key in self._waiting if type(key) is tuple and key[0] is source]:
            del self._waiting[key]
            self._counted -= 1
        self._drained.set()
        self._drained = anyio.Event()

    def end(self) -> None:
        """Take nothing more; after what waits, `None` is the last message."""
        if not self._ended:
            self._add(self._new_key(), None)
            self._ended = True
            self._drained.set()

    # ------------------------------------------------------------------------------------------

    def _new_key(self) -> int:
        self._next_key += 1
        return self._next_key

    async def _wait_for_room(self, key: Hashable | None) -> None:
        while True:
            if self._ended:
                raise anyio.ClosedResourceError
            if self._counted < self._limit or (key is not None and key in self._waiting):
                return
            await self._drained.wait()

    def _add(self, key: Hashable, message: Any) -> None:
        if _counts(key) and key not in self._waiting:
            self._counted += 1
        self._waiting[key] = message
        self._filled.set()
        self._filled = anyio.Event()


def _counts(key: Hashable) -> bool:
    return key not in (_STATE, _START, _READY)
