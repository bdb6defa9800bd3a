"""Messages on their way into the stream: one by one, or an atomic batch, and what became of each.

Used by `nats_committing` and `nats_compact`, one after the other. Every message carries the last
sequence that its subject must have. Nothing is sent again here: who asked decides that.

A guard is a message on a subject of its own that expects the last sequence of another subject; it
goes before the writes of its batch, so that the last message of the stream is never one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nats import errors as nats_errors

from moat_kv import waiting
from moat_kv.engine import age, nats_client, nats_clock, nats_connection

_log = logging.getLogger(__name__)

#: How long an acknowledgement is waited for before the message may be sent again, in seconds.
ACK_S = 2.0

_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_OF = "Nats-Expected-Last-Subject-Sequence-Subject"
_BATCH_ID = "Nats-Batch-Id"
_BATCH_SEQUENCE = "Nats-Batch-Sequence"
_BATCH_COMMIT = "Nats-Batch-Commit"

#: Another record is there, or on its way (the second says no number).
_CONFLICTS = (10071, 10164)
_STORED = re.compile(rb'\{"stream":"[^"]*", ?"seq":(\d+)\}')
_SEQUENCE = re.compile(r"wrong last sequence: (\d+)")


class Message(NamedTuple):
    """What is to be stored where, and the last sequence that must be found.

    (Each write makes one; a frozen dataclass takes four times as long.)
    """

    subject: str
    body: bytes
    expect: int | None
    """None: whatever is there."""
    expect_of: str | None = None
    """The subject that must have it, if not this one."""

    def lines(self) -> str:
        """Its headers."""
        if self.expect is None:
            return ""
        if self.expect_of is None:
            return f"{_EXPECTED}: {self.expect}\r\n"
        return f"{_EXPECTED}: {self.expect}\r\n{_EXPECTED_OF}: {self.expect_of}\r\n"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """It is in the stream; `rev` is the sequence of the (last) message."""

    rev: int


@dataclass(frozen=True, kw_only=True)
class Refused:
    """It is not in the stream.

    `conflict`: another record came first; `rev` is its sequence, if NATS said so. `passing`: it may
    be another matter soon.
    """

    reason: str
    conflict: bool = False
    passing: bool = False
    rev: int | None = None


@dataclass(frozen=True, kw_only=True)
class Open:
    """No answer: it may be in the stream, or get there yet."""

    reason: str


Answer = Stored | Refused | Open

Told = Callable[[int, int], None]
"""Told that the message at this place, from 0, is stored, and at which sequence."""


class Publisher:
    """Publishes over one connection; `open` first. `clock` is told of what was stored."""

    def __init__(
        self, connection: nats_connection.Connection, clock: nats_clock.Clock | None = None
    ) -> None:
        self._connection = connection
        self._clock = clock
        # When the present messages were sent, by `age.up_s`; None: none, or the clock was told.
        self._sent_s: float | None = None
        self._client = connection.client
        self._inbox = self._client.new_inbox()
        self._number = 0
        # In the order in which the messages were sent.
        self._answers: dict[str, Answer | None] = {}
        self._first = 0
        self._told: Told | None = None
        self._make_waiter = waiting.maker()
        self._complete = self._make_waiter()

        self._subscription: Any = None

    async def open(self) -> None:
        """Listen for answers. Raises nats_connection.NoAnswer."""
        self._connection.when_lost.append(self._lost)
        try:
            inbox = f"{self._inbox}.*"
            self._subscription = await self._client.listen(inbox, self._answered)
        except (nats_errors.Error, OSError) as exc:
            raise nats_connection.NoAnswer(str(exc)) from exc

    async def close(self) -> None:
        """Listen no more."""
        self._connection.when_lost.remove(self._lost)
        await self._connection.unsubscribe(self._subscription)

    async def singly(
        self, messages: Sequence[Message], wait_s: float = ACK_S, told: Told | None = None
    ) -> list[Answer]:
        """Send all without waiting in between, in this order; what became of each.

        `told` hears of those that are stored while the others are still under way.
        """
        sending = [(message, message.lines(), True) for message in messages]
        self._told = told
        try:
            return await self._send(sending, wait_s)
        finally:
            self._told = None

    async def together(self, messages: Sequence[Message], wait_s: float = ACK_S) -> Answer:
        """Send all as one atomic batch, at most 1,000; what became of it."""
        of_batch = f"{_BATCH_ID}: {secrets.token_hex(12)}\r\n{_BATCH_SEQUENCE}: "
        sending = [
            (message, f"{message.lines()}{of_batch}{number}\r\n", False)
            for number, message in enumerate(messages, 1)
        ]
        message, lines, _ = sending[-1]
        sending[-1] = message, f"{lines}{_BATCH_COMMIT}: 1\r\n", True
        (answer,) = await self._send(sending, wait_s)
        return answer

    async def _send(self, sending: list[tuple[Message, str, bool]], wait_s: float) -> list[Answer]:
        """Each message with its headers, and whether it gets an answer; those answers."""
        self._answers, self._complete = {}, self._make_waiter()
        self._first = self._number + 1
        commands = []
        try:
            for message, lines, wants_answer in sending:
                reply = ""
                if wants_answer:
                    self._number += 1
                    reply = f"{self._inbox}.{self._number}"
                    self._answers[reply] = None
                commands.append(
                    nats_client.publication(message.subject, message.body, reply, lines)
                )
            self._sent_s = None if self._clock is None else age.up_s()
            self._client.send(b"".join(commands))
        except (nats_errors.Error, OSError) as exc:
            # Part of it may have been sent; nobody will tell.
            reason = str(exc) or type(exc).__name__
            return [Open(reason=reason) for *_, wants_answer in sending if wants_answer]
        # (Whoever has told `_lost` does not tell it again.)
        if None in self._answers.values() and not self._connection.lost.is_set():
            # (A context for the time limit takes ten times as long; this is every write's way.)
            timer = asyncio.get_running_loop().call_later(wait_s, self._complete.set)
            try:
                await self._complete.wait()
            finally:
                timer.cancel()
        lost = self._connection.lost.is_set()
        silent = Open(reason="the connection was lost" if lost else "no acknowledgement in time")
        found = [answer or silent for answer in self._answers.values()]
        self._answers = {}
        return found

    def _lost(self) -> None:
        self._complete.set()

    def _answered(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        to = subject.decode()
        if to not in self._answers:
            return  # too late; whoever sent it has looked for it in the stream
        self._answers[to] = answer = _answer(data, headers)
        if None not in self._answers.values():
            self._complete.set()
        if not isinstance(answer, Stored):
            return
        if self._clock is not None and self._sent_s is not None:
            self._clock.acknowledged(answer.rev, self._sent_s, age.up_s())
            self._sent_s = None
        if self._told is not None:
            self._told(int(to.rpartition(".")[2]) - self._first, answer.rev)


def _answer(data: bytes, headers: bytes | None) -> Answer:
    usual = _STORED.fullmatch(data)
    if usual is not None:
        return Stored(rev=int(usual[1]))
    status = nats_client.headers_of(headers).get("Status")
    if status is not None:
        # 503: nobody listens there; the stream has no leader, or JetStream is not up.
        return Refused(reason=f"no stream takes it (status {status})", passing=True)
    try:
        found: dict[str, Any] = json.loads(data)
    except ValueError:
        return Open(reason="an answer that is not understood")
    if "error" not in found:
        return Stored(rev=found["seq"])
    error = found["error"]
    reason = str(error.get("description", error))
    if error.get("err_code") in _CONFLICTS:
        number = _SEQUENCE.search(reason)
        return Refused(reason=reason, conflict=True, rev=int(number[1]) if number else None)
    # A batch that a new leader does not know, too many batches at once, and whatever is 5xx.
    passing = error.get("code", 0) >= 500 or "batch" in reason
    return Refused(reason=reason, passing=passing)
