"""Reads the stream in its order: from a revision, or the newest message of each subject and on.

Used by `nats_feed`, which follows, and by `read`, which reads what is kept and ends. A consumer
pushes (fetching in pulls takes three times as long), counts what it delivers, and says every second
that it lives. One from which a message is missing, or that is silent, is of no more use: whoever
uses it makes another one. Applies nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import anyio
from nats import errors as nats_errors

from moat_kv import errors
from moat_kv.engine import (
    nats_client,
    nats_connection,
    nats_record,
    nats_stream,
    nats_subjects,
)

_log = logging.getLogger(__name__)

#: So many messages are handed on at once.
SLICE = 1_000
#: A consumer says so often that it lives, and is dead after that much silence, in seconds.
HEARTBEAT_S = 1
SILENCE_S = 3.5
#: To begin with each of many subjects' newest message takes NATS a while, and so does finding a
#: leader of its metadata, which makes consumers. In seconds.
START_S = 10.0
#: NATS forgets a consumer that nobody listens to after so long, in seconds.
FORGOTTEN_S = 10

_NANO = 1_000_000_000


class Floor(NamedTuple):
    """A record that says how far deletions are forgotten."""

    rev: int
    floor: int
    stored_at: float


class Other(NamedTuple):
    """A message that is no entry's; it is passed over."""

    rev: int
    stored_at: float


Item = nats_record.Delivered | Floor | Other


def rev_of(item: Item) -> int:
    """Where it stands in the stream."""
    return item.record.rev if isinstance(item, nats_record.Delivered) else item.rev


def item_of(
    names: nats_subjects.Names, place: nats_record.Place, subject: str, data: bytes
) -> Item:
    """What a message of the stream is."""
    try:
        path = names.path(subject)
        if path is not None:
            return nats_record.delivered(path, place, data)
        if subject == names.floor:
            return Floor(place.rev, nats_stream.floor_of(data), place.at)
    except (nats_record.NotOurs, errors.BadPath) as exc:
        _log.error("NATS: revision %d, %s: %s", place.rev, subject, exc)
    return Other(place.rev, place.at)


class Consumer:
    """One consumer, until it breaks or is stopped.

    `deliver` is called with what has come, in order, and with how much is still to come at present.
    """

    def __init__(
        self,
        connection: nats_connection.Connection,
        names: nats_subjects.Names,
        deliver: Callable[[Sequence[Item], int], None],
    ) -> None:
        self._connection = connection
        self._client = connection.client
        self._names = names
        self._deliver = deliver
        self._number = 0
        self._items: list[Item] = []
        self._remaining = 0
        self._heard_at = time.monotonic()
        self._failure: Exception | None = None
        self._over = anyio.Event()
        self._subscription: Any = None

    async def start(self, subjects: Sequence[str], since: int | None) -> int:
        """Begin above the revision `since`; None: with each subject's newest message.

        Returns how many messages there are. Raises nats_connection.NoAnswer, Refused.
        """
        inbox = self._client.new_inbox()
        asked: dict[str, Any] = {
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": FORGOTTEN_S * _NANO,
            "flow_control": True,
            "idle_heartbeat": HEARTBEAT_S * _NANO,
        }
        if since is not None:
            asked |= {"deliver_policy": "by_start_sequence", "opt_start_seq": since + 1}
        if len(subjects) == 1:
            asked["filter_subject"] = subjects[0]
        else:
            asked["filter_subjects"] = list(subjects)
        stream = self._names.stream
        try:
            self._subscription = await self._client.listen(inbox, self._came)
        except (nats_errors.Error, OSError) as exc:
            raise nats_connection.NoAnswer(str(exc)) from exc
        self._client.rests.append(self._hand_on)
        name = inbox.rpartition(".")[2]
        self._heard_at = time.monotonic()
        # (A filter in the subject of this request would be over the limit for long paths.)
        made = await self._connection.api(
            f"CONSUMER.CREATE.{stream}.{name}",
            {"stream_name": stream, "config": asked, "action": "create"},
            START_S,
        )
        return int(made.get("num_pending", 0))

    @property
    def silent_s(self) -> float:
        """For how long nothing has been heard of it, in seconds."""
        return time.monotonic() - self._heard_at

    async def until_over(self) -> None:
        """Wait until it is of no more use. Raises what `deliver` raised."""
        while not self._over.is_set():
            silent_s = self.silent_s
            if silent_s > SILENCE_S:
                _log.info("NATS: a consumer has been silent for %.1f s", silent_s)
                return
            with anyio.move_on_after(SILENCE_S - silent_s + 0.05):
                await self._over.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """Take nothing more from it; NATS forgets it by itself."""
        self._over.set()
        if self._hand_on in self._client.rests:
            self._client.rests.remove(self._hand_on)
        if self._subscription is not None:
            await self._connection.unsubscribe(self._subscription)

    def _came(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        if self._over.is_set():
            return
        try:
            place = nats_record.place(reply) if reply else None
            if place is None:
                self._told(reply, headers)
            else:
                self._take(place, subject, data)
        except Exception as exc:  # raised where it is awaited
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        self._failure = exc
        self._over.set()

    def _take(self, place: nats_record.Place, subject: bytes, data: bytes) -> None:
        self._number += 1
        if place.number != self._number:
            _log.info("NATS: a message is missing before revision %d", place.rev)
            self._over.set()
            return
        self._items.append(item_of(self._names, place, subject.decode(), data))
        self._remaining = place.remaining
        if len(self._items) >= SLICE:
            self._hand_on()

    def _hand_on(self) -> None:
        """What has come so far; also called when there is no more for the moment."""
        items, self._items = self._items, []
        if not items:
            return
        self._heard_at = time.monotonic()
        try:
            self._deliver(items, self._remaining)
        except Exception as exc:
            self._fail(exc)

    def _told(self, reply: bytes, raw: bytes | None) -> None:
        """A heartbeat, or the question whether we are still with it."""
        self._hand_on()
        self._heard_at = time.monotonic()
        headers = nats_client.headers_of(raw)
        answer_to = reply.decode() or headers.get("Nats-Consumer-Stalled")
        if answer_to:
            try:
                self._client.send(nats_client.publication(answer_to, b"", ""))
            except nats_errors.Error as exc:
                _log.debug("NATS: a consumer cannot be answered: %s", exc)
                self._over.set()
                return
        delivered = headers.get("Nats-Last-Consumer")
        if delivered is not None and int(delivered) != self._number:
            _log.info("NATS: messages are missing at the end")
            self._over.set()


async def read(
    connection: nats_connection.Connection,
    names: nats_subjects.Names,
    subjects: Sequence[str],
    since: int,
) -> AsyncIterator[Sequence[Item]]:
    """What is kept of these subjects above a revision, in slices, up to the present end.

    Raises nats_connection.NoAnswer, Refused; NoAnswer also when a message is missing.
    """
    send, receive = anyio.create_memory_object_stream[tuple[Sequence[Item], int]](float("inf"))
    consumer = Consumer(connection, names, lambda *came: send.send_nowait(came))
    async with receive, send:
        try:
            if not await consumer.start(subjects, since):
                return
            while True:
                with anyio.move_on_after(SILENCE_S) as scope:
                    items, remaining = await receive.receive()
                if scope.cancelled_caught:
                    raise nats_connection.NoAnswer("the rest did not come")
                yield items
                if not remaining:
                    return
        finally:
            await consumer.stop()
