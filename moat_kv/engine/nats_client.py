"""nats-py's client, with shorter ways for what every record takes: out, and in.

Made by `nats_line`; used by `nats_publish`, which sends through it, and by `nats_consumer`, which
listens. nats-py hands a message that is published to one task and a message that came to another,
through a queue each, and looks at headers that nobody asks for; on the way of a write that is a
third of what a server takes for it, and half of a newcomer's load. Here a message is written to the
line at once, and what comes is handed on where it is read. All else is nats-py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from nats import errors as nats_errors
from nats.aio import client as nats_client
from nats.aio import subscription as nats_subscription
from nats.protocol import parser

_log = logging.getLogger(__name__)

_PREAMBLE = b"NATS/1.0\r\n"


class Took(Protocol):
    """Takes a message as it is read, in order. May not wait; what it raises is only logged."""

    def __call__(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """`headers` as they came, for `headers_of`."""


class Client(nats_client.Client):
    """nats-py's client; not for WebSockets."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = _Parser(self)
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

    async def came(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        """Hand a message to who listens; `headers` as they came. For the parser."""
        took = self._listeners.get(sid)
        if took is None:
            await self._process_msg(sid, subject, reply, data, headers)  # type: ignore[arg-type]
            return
        try:
            took(subject, reply, data, headers)
        except Exception:
            # Raised here it would end the reading of this line, with a word to nobody.
            _log.exception("a message on %s", subject.decode(errors="replace"))

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

    async def parse(self, data: bytes = b"") -> None:
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
            is_plain = data.startswith(b"MSG ", start)
            if not is_plain and not data.startswith(b"HMSG ", start):
                await super().parse(data[start : end + 2])
                start = end + 2
                continue
            # `MSG subject sid [reply] size`, `HMSG subject sid [reply] head-size size`
            words = data[start:end].split()
            begin = end + 2
            try:
                sid, stop = int(words[2]), begin + int(words[-1])
                head = begin if is_plain else begin + int(words[-2])
            except (ValueError, IndexError):
                raise nats_errors.ProtocolError from None
            if stop + 2 > len(data):
                self._needed_bytes = stop + 2 - start
                break
            reply = words[3] if len(words) == (5 if is_plain else 6) else b""
            headers = None if is_plain else data[begin:head]
            await nc.came(sid, words[1], reply, data[head:stop], headers)
            start = stop + 2
        else:
            self._needed_bytes = 0
        if start < len(data):
            self._rest = [data[start:] if start else data]
            self._rest_bytes = len(self._rest[0])
        for told in nc.rests:
            told()


def publication(subject: str, data: bytes, reply: str, headers: Mapping[str, str]) -> bytes:
    """The command that publishes a message. Nothing is checked: no spaces, no line ends."""
    if not headers:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(data), data)
    lines = "".join([f"{name}: {text}\r\n" for name, text in headers.items()])
    head = b"%b%b\r\n" % (_PREAMBLE, lines.encode())
    size = len(head)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
        subject.encode(),
        reply.encode(),
        size,
        size + len(data),
        head,
        data,
    )


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
