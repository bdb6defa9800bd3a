"""nats-py's client, with shorter ways for what every record takes: out, and in.

Made by `nats_line`; used by `nats_publish`, which sends through it, and by `nats_consumer`, which
listens. nats-py hands a message that is published to one task and a message that came to another,
through a queue each, and looks at headers that nobody asks for; on the way of a write that is a
third of what a server takes for it, and half of a newcomer's load. Here a message is written to the
line at once, and what comes is handed on where it is read. All else is nats-py's.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Protocol

from nats import errors as nats_errors
from nats.aio import client as nats_client
from nats.aio import subscription as nats_subscription
from nats.protocol import parser

_log = logging.getLogger(__name__)

_PREAMBLE = "NATS/1.0\r\n"
_MESSAGES = (b"MSG ", b"HMSG ")
#: So much at once is handled where it comes in. What is more comes in a row, and others than NATS
#: have their turn in between.
LITTLE_BYTES = 4096
#: What headers have before and behind them, in bytes.
_HEAD_BYTES = len(_PREAMBLE) + len("\r\n")


class Took(Protocol):
    """Takes a message as it is read, in order. May not wait; what it raises is only logged."""

    def __call__(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """`headers` as they came, for `headers_of`."""


class Client(nats_client.Client):
    """nats-py's client; not for WebSockets."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = self._parser = _Parser(self)
        self._listeners: dict[int, Took] = {}
        #: Called after each piece of what came; not often.
        self.rests: list[Callable[[], None]] = []

    async def listen(self, subject: str, took: Took) -> nats_subscription.Subscription:
        """Subscribe, and hand what comes to `took` where it is read. Ends with its `unsubscribe`.

        Raises what nats-py raises.
        """
        # nats-py numbers them so; whoever is quick may answer before it returns.
        self._listeners[self._sid + 1] = took
        return await self.subscribe(subject)

    async def _read_loop(self) -> None:
        """nats-py's, which reads what `_came_in` leaves to it."""
        reader = getattr(self._transport, "_io_reader", None)
        if isinstance(reader, asyncio.StreamReader):
            reader.feed_data = functools.partial(  # type: ignore[method-assign]
                self._came_in, reader.feed_data
            )
        await super()._read_loop()

    def _came_in(self, leave: Callable[[bytes], None], data: bytes) -> None:
        """Hand on at once what has just come, if it is little: an answer that somebody waits for.

        (By way of the reader and its task it takes as long again as all that is done with it.)
        """
        if len(data) <= LITTLE_BYTES and self.is_connected:
            data = self._parser.take(data)
        if data:
            self._parser.left_bytes += len(data)
            leave(data)

    def send(self, command: bytes) -> None:
        """Write a command, see `publication`, to the line. Raises ConnectionClosedError.

        After what nats-py has still to send. What the line cannot take at once is kept: who sends
        much waits for answers.
        """
        if not self.is_connected or self._transport is None:
            raise nats_errors.ConnectionClosedError
        try:
            if self._pending:
                self._transport.writelines(self._pending)
                self._pending, self._pending_data_size = [], 0
            self._transport.write(command)
        except RuntimeError as exc:  # uvloop's, of a line that nats-py does not know to be closed
            raise nats_errors.ConnectionClosedError from exc

    def abort(self) -> None:
        """Give the socket up, with all that is unsent; after `close`.

        (nats-py leaves it to whoever takes what is unsent.)
        """
        writer = self._writer
        if writer is not None:
            writer.transport.abort()

    @property
    def _writer(self) -> asyncio.StreamWriter | None:
        return getattr(self._transport, "_io_writer", None)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """What is unsent goes with a socket that is closed: nats-py would write to it, which uvloop
        takes for a fault, and not come to its end.
        """
        writer = self._writer
        if writer is not None and writer.is_closing():
            self._pending, self._pending_data_size = [], 0
        await super()._close(status, do_cbs)

    def came(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> bool:
        """Hand a message to who listens; `headers` as they came. For the parser.

        False: nobody does, and it is nats-py's.
        """
        took = self._listeners.get(sid)
        if took is None:
            return False
        try:
            took(subject, reply, data, headers)
        except Exception:
            # Raised here it would end the reading of this line, with a word to nobody.
            _log.exception("a message on %s", subject.decode(errors="replace"))
        return True

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._listeners.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """(nats-py's own takes two fifths of a load's time.)"""
        return _lines(raw.decode("utf-8", "replace").split("\r\n"))


class _Parser(parser.Parser):
    """Takes messages out of what has come, whole ones only; all other lines are nats-py's."""

    def reset(self) -> None:
        super().reset()
        self._rest: list[bytes] = []  # of a message that is not all there
        self._rest_bytes = self._needed_bytes = 0
        #: What has come and is still to be parsed, in bytes.
        self.left_bytes = 0

    def take(self, data: bytes) -> bytes:
        """Hand on whole messages at the beginning of what has come; what is left for `parse`."""
        if self._rest or self.left_bytes:
            return data  # it is behind that
        nc: Client = self.nc
        start = 0
        while data.startswith(_MESSAGES, start) and (end := data.find(b"\r\n", start)) >= 0:
            try:
                sid, subject, reply, headers, head, stop = _message(data, start, end)
            except nats_errors.ProtocolError:
                break
            if stop + 2 > len(data) or not nc.came(sid, subject, reply, data[head:stop], headers):
                break
            start = stop + 2
        if start:
            for told in nc.rests:
                told()
        return data[start:]

    async def parse(self, data: bytes = b"") -> None:
        try:
            await self._parse(data)
        finally:
            self.left_bytes = max(0, self.left_bytes - len(data))

    async def _parse(self, data: bytes) -> None:
        nc: Client = self.nc
        if len(data) >= nats_client.DEFAULT_BUFFER_SIZE:
            # There is more, and behind it may be the answer to a ping. (That something comes is not
            # enough: what we send may hang all the same.)
            nc._pings_outstanding = 0
        if self._rest:
            self._rest.append(data)
            self._rest_bytes += len(data)
            if self._rest_bytes < self._needed_bytes:
                return
            data = b"".join(self._rest)
            self._rest = []
        start = 0
        while (end := data.find(b"\r\n", start)) >= 0:
            if not data.startswith(_MESSAGES, start):
                await super().parse(data[start : end + 2])
                start = end + 2
                continue
            sid, subject, reply, headers, head, stop = _message(data, start, end)
            if stop + 2 > len(data):
                self._needed_bytes = stop + 2 - start
                break
            body = data[head:stop]
            if not nc.came(sid, subject, reply, body, headers):
                # (nats-py takes no headers for None, too, whatever it says.)
                await nc._process_msg(sid, subject, reply, body, headers)  # type: ignore[arg-type]
            start = stop + 2
        else:
            self._needed_bytes = 0
        if start < len(data):
            self._rest = [data[start:] if start else data]
            self._rest_bytes = len(self._rest[0])
        for told in nc.rests:
            told()


def _message(data: bytes, start: int, end: int) -> tuple[int, bytes, bytes, bytes | None, int, int]:
    """Of a message whose first line ends at `end`: whose it is, its subject, where to answer, its
    headers, and where its body begins and ends. Raises ProtocolError.
    """
    # `MSG subject sid [reply] size`, `HMSG subject sid [reply] head-size size`
    words = data[start:end].split()
    begin, is_plain = end + 2, words[0] == b"MSG"
    try:
        sid, stop = int(words[2]), begin + int(words[-1])
        head = begin if is_plain else begin + int(words[-2])
    except (ValueError, IndexError):
        raise nats_errors.ProtocolError from None
    reply = words[3] if len(words) == (5 if is_plain else 6) else b""
    return sid, words[1], reply, None if is_plain else data[begin:head], head, stop


def publication(subject: str, data: bytes, reply: str, headers: str = "") -> bytes:
    """The command that publishes a message. Nothing is checked: no spaces, no line ends.

    `headers`: lines of ASCII, each `name: text` with `\\r\\n` at its end.
    """
    if not headers:
        return b"%b%b\r\n" % (f"PUB {subject} {reply} {len(data)}\r\n".encode(), data)
    size = len(headers) + _HEAD_BYTES
    head = f"HPUB {subject} {reply} {size} {size + len(data)}\r\n{_PREAMBLE}{headers}\r\n"
    return b"%b%b\r\n" % (head.encode(), data)


def headers_of(raw: bytes | None) -> dict[str, str]:
    """The headers of a message, and as `Status` the number that NATS says in their first line."""
    if not raw:
        return {}
    first, *lines = raw.decode("utf-8", "replace").split("\r\n")
    found = _lines(lines)
    status = first.removeprefix("NATS/1.0").split(maxsplit=1)
    if status:
        found["Status"] = status[0]
    return found


def _lines(lines: list[str]) -> dict[str, str]:
    parts = [line.partition(":") for line in lines]
    return {name: value.strip() for name, colon, value in parts if colon}
