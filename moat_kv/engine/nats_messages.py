"""Fleeting messages: sent to whoever listens at present, over whatever connection there is.

`engine.nats` hands on what is to be sent, and has each connection used. Keeps nothing but what
waits for a connection, and of that not much.
"""

from __future__ import annotations

import logging
from collections import deque

import anyio
from nats import errors as nats_errors
from nats.aio import msg as nats_msg

from moat_kv import errors
from moat_kv.engine import base, nats_connection, nats_subjects
from moat_kv.path import Path

_log = logging.getLogger(__name__)

#: So many fleeting messages wait to be sent; then the oldest are lost.
OUTGOING = 1_000


class Messages:
    """What comes goes to `replica`."""

    def __init__(self, names: nats_subjects.Names, replica: base.Replica) -> None:
        self._names = names
        self._replica = replica
        self._outgoing: deque[tuple[str, bytes]] = deque(maxlen=OUTGOING)
        self._sending = anyio.Event()

    async def listen(self, connection: nats_connection.Connection) -> None:
        """Hear what comes over it. Raises nats_connection.NoAnswer."""
        try:
            await connection.client.subscribe(self._names.messages, cb=self._heard)
        except (nats_errors.Error, OSError) as exc:
            raise nats_connection.NoAnswer(str(exc)) from exc

    def send(self, topic: Path, data: bytes) -> None:
        """Send it soon, if there is a connection soon."""
        self._outgoing.append((self._names.message(topic), data))
        self._sending.set()

    async def pass_on(self, connection: nats_connection.Connection) -> None:
        """Send over it what is to be sent, until cancelled."""
        while True:
            while self._outgoing:
                subject, data = self._outgoing.popleft()
                try:
                    await connection.client.publish(subject, data)
                except (nats_errors.Error, OSError) as exc:
                    _log.debug("NATS: a message to %s is lost: %s", subject, exc)
            await self._sending.wait()
            self._sending = anyio.Event()

    async def _heard(self, message: nats_msg.Msg) -> None:
        try:
            self._replica.message(self._names.topic(message.subject), bytes(message.data))
        except errors.BadPath as exc:
            _log.debug("NATS: a message that is not ours: %s", exc)
        except Exception:
            # nats-py would drop it unseen.
            _log.exception("a message on %s", message.subject)
