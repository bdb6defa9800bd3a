"""Keeps a line to one of several servers, over breaks and restarts.

The client's calls and streams come here and go on to the present `Connection`. When that breaks,
calls that only read are repeated on the next one, writes raise Disconnected or Unknown, and
streams are asked for anew, each from where it was. Before anything else uses a new line its
`restorers` do: sessions are resumed, then memberships, because writes depend on them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import anyio

from moat_kv import errors
from moat_kv.client import backoff, connection, handshake, results, streams, under_way
from moat_kv.client.address import Address
from moat_kv.proto import messages

logger = logging.getLogger(__name__)

#: A server that says so cannot restore a session just now; another one may.
_UNFIT = (errors.Detached, errors.Unknown, errors.StorageFailed)

#: All that is restored on a new line must be so within so many seconds.
RESTORE_LIMIT_S = 5.0


class Restorer(Protocol):
    """Something that a server must be told anew on each line."""

    async def restore(self, line: connection.Connection) -> None:
        """Tell it. LineBroken and Overdue may pass; Detached, Unknown and StorageFailed say that
        this server cannot do it now.
        """

    def interrupted(self) -> None:
        """The line broke."""


class Link:
    """The present line, and what outlives it. `keep` must run from the first line on."""

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        name: str,
        connect_timeout_s: float,
        request_timeout_s: float,
        reconnect: bool,
        seen: results.Mark | None = None,
        silence_s: float = connection.SILENCE_S,
    ) -> None:
        self.name = name
        self.request_timeout_s = request_timeout_s
        self.connect_timeout_s = connect_timeout_s
        #: The server of the present line, or of the last one.
        self.server: results.ServerInfo
        #: The highest revision seen in the server's epoch; the next server must not be behind it.
        self.seen = 0 if seen is None else seen.rev
        # The epoch of that; "": of none.
        self._epoch = "" if seen is None else seen.epoch
        #: In the order in which they are restored.
        self.restorers: list[Restorer] = []
        self.listeners: list[Callable[[bool], None]] = []
        #: The first line can be used, or is gone already.
        self.ready = anyio.Event()
        self._addresses = list(addresses)
        self._reconnect = reconnect
        self._silence_s = silence_s
        self._connection: connection.Connection | None = None
        self._streams: dict[streams.Stream, int] = {}  # and each one's seq; 0: not asked for
        self._up = anyio.Event()
        self._closed: str | None = None
        self._why_down = "not connected yet"
        self._scope: anyio.CancelScope | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def urls(self) -> list[str]:
        """The servers that are tried, the last good one first."""
        return [address.url for address in self._addresses]

    # Calls --------------------------------------------------------------------------------------

    async def call(
        self,
        action: str,
        arguments: dict[str, Any],
        value: bytes | None = None,
        *,
        repeat: bool = False,
    ) -> messages.Reply:
        """Ask the server. `repeat`: it only reads, so it may be asked again on another line.

        Raises what the server answers. Without `repeat`, Disconnected if the line was broken
        before the request left, Unknown if it broke, or the time ran out, later. With it,
        RequestTimeout, or Disconnected if there is no line within the time limit.
        """
        line = self._connection
        if line is not None:
            try:
                return await line.call(action, arguments, value)
            except under_way.LineBroken as exc:
                if not repeat:
                    raise _broken_write(exc) from exc
            except under_way.Overdue as exc:
                raise self._overdue_call(action, repeat, exc.sent) from exc
        elif not repeat:
            raise errors.Disconnected(self._closed or self._why_down)
        return await self._call_again(action, arguments, value)

    async def _call_again(
        self, action: str, arguments: dict[str, Any], value: bytes | None
    ) -> messages.Reply:
        with anyio.move_on_after(self.request_timeout_s):
            while True:
                line = await self._wait_for_line()
                try:
                    return await line.call(action, arguments, value)
                except under_way.LineBroken:
                    continue
                except under_way.Overdue:
                    break
        raise self.overdue(action)

    async def _wait_for_line(self) -> connection.Connection:
        while self._connection is None:
            if self._closed is not None:
                raise errors.Disconnected(self._closed)
            await self._up.wait()
        return self._connection

    def overdue(self, action: str) -> errors.MoatKvError:
        """What to raise for a read that took too long."""
        if self._connection is None:
            return errors.Disconnected(self._closed or self._why_down)
        return errors.RequestTimeout(action, self.request_timeout_s)

    def _overdue_call(self, action: str, repeat: bool, sent: bool) -> errors.MoatKvError:
        limit_s = self.request_timeout_s
        if repeat:
            return errors.RequestTimeout(action, limit_s)
        if sent:
            return errors.Unknown(f"no answer to {action} within {limit_s:g} s")
        return errors.Disconnected(f"the line has been stuck for {limit_s:g} s")

    def saw(self, rev: int) -> None:
        """A revision that the present server has told."""
        if rev > self.seen:
            self.seen = rev

    # Streams ------------------------------------------------------------------------------------

    def open_stream(self, stream: streams.Stream) -> None:
        """Ask for a stream now, or when there is a line, and on each further line.

        Raises Disconnected if the client is closed, BadValue and the like if it cannot be asked.
        """
        if self._closed is not None:
            raise errors.Disconnected(self._closed)
        self._streams[stream] = 0
        if self._connection is not None:
            self._ask(self._connection, stream)

    def _ask(self, line: connection.Connection, stream: streams.Stream) -> None:
        try:
            self._streams[stream] = line.open_stream(stream, stream.action, stream.ask())
        except under_way.LineBroken:
            return  # the next line's turn
        except errors.MoatKvError:
            self._streams.pop(stream, None)
            raise

    def close_stream(self, stream: streams.Stream) -> None:
        """Stop a stream. Does nothing the second time."""
        seq = self._streams.pop(stream, 0)
        if seq and self._connection is not None:
            self._connection.stop_stream(seq)

    def forget_stream(self, stream: streams.Stream) -> None:
        """A stream has ended by itself."""
        self._streams.pop(stream, None)

    def caught_up(self) -> None:
        """A consumer that lagged does so no more."""
        if self._connection is not None:
            self._connection.caught_up()

    # The line -----------------------------------------------------------------------------------

    async def connect(self, *, wait: bool) -> handshake.Line:
        """The first line: tries each server once, or with `wait` for as long as the limit allows.

        Raises CannotConnect.
        """
        waits = backoff.Backoff()
        error = errors.CannotConnect(self._urls(), f"no answer within {self.connect_timeout_s:g} s")
        with anyio.move_on_after(self.connect_timeout_s):
            while True:
                try:
                    return await self._try_each()
                except errors.CannotConnect as exc:
                    error = exc
                    if not wait:
                        break
                await anyio.sleep(waits.next_s())
        raise error

    async def _try_each(self) -> handshake.Line:
        """One round over all servers, the last good one first. Raises CannotConnect."""
        limit_s = self.connect_timeout_s / len(self._addresses)
        failures: list[errors.MoatKvError] = []
        for address in list(self._addresses):
            epoch = self._epoch if self.seen else ""
            try:
                line = await handshake.reach(
                    address, name=self.name, seen=self.seen, epoch=epoch, limit_s=limit_s
                )
            except (errors.CannotConnect, errors.Behind) as exc:
                failures.append(exc)
                continue
            self._addresses.remove(address)
            self._addresses.insert(0, address)
            return line
        if len(failures) == 1 and isinstance(failures[0], errors.CannotConnect):
            raise failures[0]
        reasons = "; ".join(
            f"{address.url}: {getattr(failure, 'reason', None) or failure}"
            for address, failure in zip(self._addresses, failures, strict=True)
        )
        raise errors.CannotConnect(self._urls(), reasons)

    def _urls(self) -> str:
        return ", ".join(address.url for address in self._addresses)

    async def keep(self, line: handshake.Line) -> None:
        """Serve this line, and the next ones, until `close`. `ready` says when it can be used.

        Shielded from cancellation from outside: whoever uses the client may still need the line to
        clean up.
        """
        waits = backoff.Backoff()
        with anyio.CancelScope(shield=True) as self._scope:
            while self._closed is None:
                began = time.monotonic()
                await self._live(line)
                self.ready.set()
                if not self._reconnect:
                    self._give_up(f"{self._why_down}, and reconnecting is switched off")
                    return
                waits.held(time.monotonic() - began)
                line = await self._next_line(waits)

    async def _next_line(self, waits: backoff.Backoff) -> handshake.Line:
        while True:
            await anyio.sleep(waits.next_s())
            try:
                return await self._try_each()
            except errors.CannotConnect as exc:
                self._why_down = str(exc)
                logger.debug("still without a server: %s", exc)

    async def _live(self, line: handshake.Line) -> None:
        """One line, from its first use to its end."""
        server = line.server
        if server.epoch != self._epoch:
            self.seen, self._epoch = 0, server.epoch
        self.server = server
        present = connection.Connection(
            line,
            request_timeout_s=self.request_timeout_s,
            on_broken=self._line_down,
            silence_s=self._silence_s,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(present.run)
            if await self._restore(present):
                self._line_up(present)

    async def _restore(self, line: connection.Connection) -> bool:
        try:
            with anyio.fail_after(RESTORE_LIMIT_S):
                for restorer in self.restorers:
                    await restorer.restore(line)
        except (under_way.LineBroken, under_way.Overdue, TimeoutError) as exc:
            line.close(f"what was there before could not be restored ({exc})")
        except _UNFIT as exc:
            # Others come first when the next line is looked for.
            self._addresses.append(self._addresses.pop(0))
            line.close(f"this server cannot go on with what was there before ({exc})")
        if line.broken is None:
            return True
        for restorer in self.restorers:
            restorer.interrupted()
        return False

    def _line_up(self, line: connection.Connection) -> None:
        logger.info("connected to %s (%s)", self.server.url, self.server.node)
        self._connection = line
        for stream in list(self._streams):
            try:
                self._ask(line, stream)
            except errors.MoatKvError as exc:
                stream.ended(exc)
        self._up.set()
        self.ready.set()
        self._tell(True)

    def _line_down(self, line: connection.Connection, reason: str) -> None:
        self._why_down = f"{reason} ({self.server.url})"
        if self._connection is not line:
            return
        self._connection = None
        self._up = anyio.Event()
        for stream in self._streams:
            self._streams[stream] = 0
        for restorer in self.restorers:
            restorer.interrupted()
        if self._closed is None:
            logger.info("disconnected: %s", self._why_down)
        self._tell(False)

    def _tell(self, connected: bool) -> None:
        for listener in list(self.listeners):
            try:
                listener(connected)
            except Exception:
                # One user's callback must not take the line from all others.
                logger.exception("a listener to the connection failed")

    def _give_up(self, reason: str) -> None:
        """There will be no further line."""
        if self._closed is not None:
            return
        self._closed = reason
        for stream in list(self._streams):
            stream.ended(errors.Disconnected(reason))
        self._up.set()

    @property
    def closed(self) -> bool:
        """There will be no line any more."""
        return self._closed is not None

    def close(self) -> None:
        """End the line, and everything that waits for one."""
        self._give_up("the client was closed")
        if self._connection is not None:
            self._connection.close("the client was closed")
        if self._scope is not None:
            self._scope.cancel()


def _broken_write(exc: under_way.LineBroken) -> errors.MoatKvError:
    if exc.sent:
        return errors.Unknown(exc.reason, line_broke=True)
    return errors.Disconnected(exc.reason)
