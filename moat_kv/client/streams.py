"""Requests that are answered in parts, and that live over a change of lines.

`link` opens each `Stream` on whatever line there is, and again on the next one. `Answer` is a
stream with an end (get_tree, list, history); watches, monitors and group watches have none and are
in modules of their own.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import anyio.lowlevel

from moat_kv import errors, waiting

if TYPE_CHECKING:
    from moat_kv.client.link import Link

#: So many rows may wait for a consumer before reading pauses (see `connection`).
LAG_ROWS = 5_000

_T = TypeVar("_T")


class Stream:
    """What all streams share. A subclass says what it asks, and takes the answers.

    `changed` tells whoever waits in `wait`; both belong to one consumer.
    """

    #: The request that asks for it.
    action: str

    def __init__(self, link: Link) -> None:
        self.lagging = False
        self._link = link
        self._over = False
        self._error: errors.MoatKvError | None = None
        self._make_waiter = waiting.maker()
        # Whether something has come since the consumer last waited, and while it waits.
        self._is_news = False
        self._news: waiting.Waiter | None = None

    def ask(self) -> dict[str, Any]:
        """The arguments of the request, made anew for each line."""
        raise NotImplementedError

    def started(self, fields: dict[str, Any]) -> None:
        """The server has taken the request."""

    def item(self, fields: dict[str, Any], value: bytes | None) -> None:
        """The next part."""
        raise NotImplementedError

    def interrupted(self, reason: str) -> None:
        """The line broke; the link will ask anew on the next one."""

    def ended(self, error: errors.MoatKvError | None) -> None:
        """It is over: as it should be, or with an error for the consumer."""
        self._link.forget_stream(self)
        self._over = True
        self._error = error
        self.changed()

    def changed(self) -> None:
        self._is_news = True
        if self._news is not None:
            self._news.set()

    async def wait(self) -> None:
        """Until something has come since the last wait."""
        if not self._is_news:
            self._news = self._make_waiter()
            try:
                await self._news.wait()
            finally:
                self._news = None
        self._is_news = False


class Answer(Stream):
    """All rows of an answer that has an end.

    If the line breaks it is asked for anew as long as nothing of it was taken; after that the
    consumer gets Disconnected, for the rows could come twice.
    """

    def __init__(self, link: Link, action: str, arguments: dict[str, Any]) -> None:
        super().__init__(link)
        self.action = action
        self._arguments = arguments
        self._rows: list[list[Any]] = []
        self._taken = False

    def ask(self) -> dict[str, Any]:
        return self._arguments

    def item(self, fields: dict[str, Any], value: bytes | None) -> None:
        self._rows.extend(fields["rows"])
        self.lagging = self._taken and len(self._rows) > LAG_ROWS
        self.changed()

    def interrupted(self, reason: str) -> None:
        if self._taken:
            text = f"{reason}, in the middle of the answer to {self.action}"
            self.ended(errors.Disconnected(text))
        else:
            self._rows.clear()

    async def take(self) -> list[list[Any]]:
        """The rows that have come, at least one; none at the end."""
        while not self._rows and not self._over:
            await self._wait()
        self._taken = True
        rows, self._rows = self._rows, []
        if self.lagging:
            self.lagging = False
            self._link.caught_up()
        if not rows and self._error is not None:
            raise self._error
        return rows

    async def take_all(self) -> list[list[Any]]:
        """All rows, at the end."""
        while not self._over:
            await self._wait()
        if self._error is not None:
            raise self._error
        return self._rows

    async def _wait(self) -> None:
        limit_s = self._link.request_timeout_s
        with anyio.move_on_after(limit_s) as scope:
            await self.wait()
        if scope.cancelled_caught and not self._over:
            self._link.close_stream(self)
            self.ended(self._link.overdue(self.action))


class Rows(Generic[_T], AsyncIterator[_T]):
    """Iterates over an answer. Asked for at the first step; dropping it stops the server."""

    def __init__(self, answer: Answer, link: Link, make: Callable[[list[Any]], _T]) -> None:
        self._answer = answer
        self._link = link
        self._make = make
        self._rows: list[list[Any]] = []
        self._next = 0
        self._open = False
        self._closed = False
        self._thread = threading.get_ident()

    def __aiter__(self) -> Rows[_T]:
        return self

    async def __anext__(self) -> _T:
        if self._next >= len(self._rows) and not await self._more():
            raise StopAsyncIteration
        row = self._rows[self._next]
        self._next += 1
        return self._make(row)

    async def next_batch(self) -> list[_T]:
        """What has come, at least one; none at the end. For consumers to whom a step is costly."""
        if self._next >= len(self._rows) and not await self._more():
            return []
        rows, self._rows = self._rows[self._next :], []
        self._next = 0
        return [self._make(row) for row in rows]

    async def _more(self) -> bool:
        if self._closed:
            return False
        self._rows, self._next = [], 0
        try:
            # Between two portions the others have their turn, also if rows abound.
            await anyio.lowlevel.checkpoint()
            if not self._open:
                self._open = True
                self._link.open_stream(self._answer)
            self._rows = await self._answer.take()
        except BaseException:  # cancelled, too: the server must not go on for nobody
            self._stop()
            raise
        if not self._rows:
            self._closed = True
        return bool(self._rows)

    def _stop(self) -> None:
        if self._open and not self._closed:
            self._closed = True
            self._link.close_stream(self._answer)

    @property
    def closed(self) -> bool:
        """Whether it is at its end, or was stopped."""
        return self._closed

    async def aclose(self) -> None:
        """Stop; what has come is dropped."""
        self._stop()
        self._closed = True
        self._rows, self._next = [], 0

    def __del__(self) -> None:
        # Left in the middle. Only the loop's own thread may touch the line; from another one the
        # answer is left to run to its end.
        if threading.get_ident() == self._thread:
            self._stop()


async def all_rows(link: Link, action: str, arguments: dict[str, Any]) -> list[list[Any]]:
    """All rows of an answer that is not too long to be held at once."""
    answer = Answer(link, action, arguments)
    link.open_stream(answer)
    try:
        return await answer.take_all()
    finally:
        link.close_stream(answer)
