"""What watches, monitors and group watches have in common for those who read them.

A `Subscription` is entered to begin and left to end; in between it is iterated. Whatever comes
waits in the subclass, in a buffer whose bound is its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Self, TypeVar

import anyio.lowlevel

from moat_kv.client import streams
from moat_kv.notgiven import NotGiven, NotGivenType

if TYPE_CHECKING:
    from types import TracebackType

_T = TypeVar("_T")

#: After so many items without a wait the others have their turn.
_TURN = 64


class Subscription(streams.Stream, Generic[_T]):
    """`async with ... as s: async for item in s`. One consumer.

    Iteration ends when the context does; or with an error: Disconnected if the client was closed
    or does not reconnect, or what the server refused it with.
    """

    _handed_out = 0

    def waiting(self) -> bool:
        """Whether anything waits."""
        raise NotImplementedError

    def take(self) -> _T | NotGivenType:
        """The next of what waits; NotGiven if it is not for the consumer."""
        raise NotImplementedError

    def begin(self) -> None:
        """Have it come."""
        self._link.open_stream(self)

    def finish(self) -> None:
        """Have no more of it come."""
        self._link.close_stream(self)

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish()
        self._over = True
        self.changed()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        while True:
            while not self.waiting():
                if self._error is not None:
                    raise self._error
                if self._over:
                    raise StopAsyncIteration
                self._handed_out = 0
                await self.wait()
            if self._handed_out >= _TURN:
                self._handed_out = 0
                await anyio.lowlevel.checkpoint()
                continue  # what waited may have been dropped meanwhile
            item = self.take()
            if item is not NotGiven:
                self._handed_out += 1
                return item

    async def next_batch(self) -> list[_T]:
        """What waits, at least one; none at the end. For consumers to whom a step is costly."""
        try:
            batch = [await self.__anext__()]
        except StopAsyncIteration:
            return []
        while self.waiting():
            item = self.take()
            if item is not NotGiven:
                batch.append(item)
        return batch
