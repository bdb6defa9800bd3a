"""Reads the stream without a consumer: whichever node has a copy tells what comes next.

`nats_feed` does this while it has no consumer: making one takes the leader of NATS's metadata, and
it lives on one node. `nats_reading` reads a path's history so, and `nats_touch` finds out whether a
node has what was stored. A node answers from its own copy of the stream, which may end earlier than
the leader's, but has no gaps: each message tells which one was sent before it. Applies nothing.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import anyio
from nats import errors as nats_errors
from nats.aio import msg as nats_msg

from moat_kv.engine import nats_connection, nats_consumer, nats_record, nats_subjects

#: One answer has so many messages at most, and ends above so many bytes.
BATCH = 1_000
BATCH_BYTES = 4 << 20
#: If nothing has come of an answer for so long there is none, in seconds.
ANSWER_S = 4.0
#: Until one begins to come, the question is sent again after so long, and after twice that, and so
#: on, in seconds: NATS chooses by chance which copy answers, where the node that we are connected
#: to has none that is up to date (for some seconds after it has led), and that one may be frozen.
AGAIN_S = 0.3
#: Between two looks into a copy for what is not there yet, in seconds.
PAUSE_S = 0.05

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")


class Reader:
    """Reads over one connection; `open` first. One question at a time."""

    def __init__(self, connection: nats_connection.Connection, names: nats_subjects.Names) -> None:
        self._connection = connection
        self._client = connection.client
        self._names = names
        self._inbox = self._client.new_inbox()
        # Of the last question that was sent, of the first with the same words, and of that which is
        # being answered (0: none yet).
        self._number, self._first, self._answering = 0, 1, 0
        self._items: list[nats_consumer.Item] = []
        self._last = 0
        self._heard_at = 0.0
        self._failure: str | None = None
        self._complete = anyio.Event()
        self._subscription: Any = None

    async def open(self) -> None:
        """Listen for answers. Raises nats_connection.NoAnswer."""
        self._connection.when_lost.append(self._lost)
        try:
            self._subscription = await self._client.subscribe(
                f"{self._inbox}.*", cb=self._came, pending_msgs_limit=0, pending_bytes_limit=0
            )
        except (nats_errors.Error, OSError) as exc:
            raise nats_connection.NoAnswer(str(exc)) from exc

    async def close(self) -> None:
        """Listen no more."""
        self._connection.when_lost.remove(self._lost)
        if self._subscription is not None:
            await self._connection.unsubscribe(self._subscription)

    async def after(self, rev: int, subject: str) -> Sequence[nats_consumer.Item]:
        """Of what a subject (or pattern) has above a revision the first, in order; [] if no more.

        What is at the end of the answer need not be the end of the stream: ask again. Raises
        nats_connection.NoAnswer.
        """
        self._first = self._number + 1
        self._answering = 0
        self._items, self._last, self._failure = [], 0, None
        self._complete = anyio.Event()
        wanted = {
            "seq": rev + 1,
            "next_by_subj": subject,
            "batch": BATCH,
            "max_bytes": BATCH_BYTES,
        }
        self._heard_at = time.monotonic()
        try:
            await self._until_complete(json.dumps(wanted).encode())
        finally:
            self._first = self._number + 1  # what comes now is too late
        if self._failure is not None:
            raise nats_connection.NoAnswer(self._failure)
        return self._items

    async def _until_complete(self, question: bytes) -> None:
        """Ask until somebody begins to answer; whoever was asked first may be frozen."""
        again_at, pause_s = self._heard_at, AGAIN_S
        while not self._complete.is_set():
            now = time.monotonic()
            if now - self._heard_at >= ANSWER_S:
                self._fail("no answer in time")
                break
            if not self._answering and now >= again_at:
                await self._ask(question)
                again_at, pause_s = now + pause_s, 2 * pause_s
            next_at = self._heard_at + ANSWER_S
            if not self._answering:
                next_at = min(next_at, again_at)
            with anyio.move_on_after(max(0.0, next_at - now)):
                await self._complete.wait()

    async def _ask(self, question: bytes) -> None:
        self._number += 1
        try:
            await self._client.publish(
                f"{self._connection.prefix}.DIRECT.GET.{self._names.stream}",
                question,
                f"{self._inbox}.{self._number}",
            )
        except (nats_errors.Error, OSError) as exc:
            raise nats_connection.NoAnswer(str(exc)) from exc

    def _lost(self) -> None:
        self._fail("the connection was lost")

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._complete.set()

    async def _came(self, message: nats_msg.Msg) -> None:
        """Called by nats-py for each message, in order."""
        number = int(message.subject.rpartition(".")[2])
        if number < self._first or self._answering not in (0, number):
            return
        self._answering = number
        self._heard_at = time.monotonic()
        headers = message.headers or {}
        status = headers.get("Status")
        if status == "404":  # no more
            self._complete.set()
        elif status not in (None, "204"):
            self._fail(f"status {status}")
        elif int(headers.get("Nats-Last-Sequence", 0)) != self._last:
            self._fail("a message is missing")
        elif status == "204":  # the end of this answer
            self._complete.set()
        else:
            self._last = int(headers["Nats-Sequence"])
            place = nats_record.Place(self._last, 0, stored_at(headers["Nats-Time-Stamp"]), 0)
            subject = headers["Nats-Subject"]
            item = nats_consumer.item_of(self._names, place, subject, message.data)
            self._items.append(item)


def stored_at(stamp: str) -> float:
    """Seconds since 1970 of NATS's `2026-01-31T01:02:03.123456789Z`.

    To the last bit what a consumer's nanoseconds make: all servers' trees are the same.
    """
    found = _STAMP.fullmatch(stamp)
    if found is None:
        raise ValueError(f"{stamp!r} is no time")
    seconds = int(datetime.datetime.fromisoformat(f"{found[1]}+00:00").timestamp())
    return (seconds * 1_000_000_000 + int((found[2] or "0").ljust(9, "0"))) / 1e9


async def read(
    connection: nats_connection.Connection, names: nats_subjects.Names, subject: str, since: int = 0
) -> list[nats_consumer.Item]:
    """What is kept of a subject above a revision. Raises nats_connection.NoAnswer."""
    reader = Reader(connection, names)
    found: list[nats_consumer.Item] = []
    await reader.open()
    try:
        while items := await reader.after(since, subject):
            found += items
            since = nats_consumer.rev_of(items[-1])
    finally:
        await reader.close()
    return found


async def until_there(
    connection: nats_connection.Connection, names: nats_subjects.Names, rev: int
) -> None:
    """Wait until a copy that is read from there has a probe of that revision, or a later one.

    Raises nats_connection.NoAnswer.
    """
    reader = Reader(connection, names)
    await reader.open()
    try:
        while True:
            if await reader.after(rev - 1, names.probe):
                return
            await anyio.sleep(PAUSE_S)
    finally:
        await reader.close()
