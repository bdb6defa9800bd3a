"""The line to NATS: one connection at a time, made anew on any node when it breaks.

`engine.nats` runs one `Line` and is told of each connection. nats-py's own reconnecting is not
used: it would send what was published before the break again, and give up on some errors; here a
broken connection is dropped with all that waited in it, and whoever publishes decides what to send
again. Knows nothing of streams and records.

nats-py runs on asyncio alone, and so does all of `engine.nats`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.abc
import anyio.lowlevel
from nats import errors as nats_errors

from moat_kv import errors
from moat_kv.engine import nats_client, nats_connection, nats_settings

_log = logging.getLogger(__name__)

#: A node that is frozen is left after so many of these without an answer, in seconds. On a line of
#: 200 ms each way that holds what it carries for another 1.2 s now and then, an answer takes 2.8 s.
PING_S = 0.6
PINGS_OUTSTANDING = 7
#: Each step of an attempt to connect may take so long, in seconds.
CONNECT_S = 3.0
#: A node that has not let us in by then is not waited for alone, in seconds.
NEXT_S = 0.5
#: A server that starts looks for any node for so long, in seconds.
FIRST_CONNECT_S = 10.0
#: Whether a connection is closed is looked at this often: nats-py may hang on a frozen node's
#: socket before it says so. In seconds.
LOOK_S = 0.25
#: When each node has given a connection that was of no use, they are tried more slowly, up to this
#: pause, in seconds.
PAUSE_S = 1.0


class Line:
    """Looks for a node as long as it runs."""

    def __init__(self, settings: nats_settings.Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._turn = random.randrange(len(settings.servers))
        #: The present one.
        self.connection: nats_connection.Connection | None = None
        #: Since when there is none, in seconds of the monotonic clock.
        self.down_since: float | None = time.monotonic()
        #: Why there is none.
        self.reason = "not connected yet"
        # To go on with when the present one ends.
        self._better: nats_connection.Connection | None = None

    async def first(self) -> nats_connection.Connection:
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
                except nats_connection.NoAnswer:
                    pass
            late = time.monotonic() - began + wait_s > FIRST_CONNECT_S
            if late or shut_out == len(self._settings.servers):
                raise errors.EngineUnreachable(self._settings.place, self.reason)
            await anyio.sleep(wait_s)
            wait_s = min(1.0, wait_s * 2)

    async def keep(
        self,
        first: nats_connection.Connection,
        serve: Callable[[nats_connection.Connection], Awaitable[None]],
    ) -> None:
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

    async def elsewhere(
        self, is_good: Callable[[nats_connection.Connection], Awaitable[bool]]
    ) -> nats_connection.Connection:
        """A connection to another node than the present one, the first that is good.

        Raises NoAnswer.
        """
        present = None if self.connection is None else self.connection.server
        others = [server for server in self._in_turn() if server != present]
        return await self._race(others, is_good)

    def change_to(self, better: nats_connection.Connection) -> None:
        """Give up the present connection for this one."""
        assert self.connection is not None
        assert self._better is None
        self._better = better
        self.connection.trouble = f"was left for one to {better.server}"
        self.connection.lost.set()

    async def _again(self) -> nats_connection.Connection:
        wait_s = 0.05
        while True:
            try:
                return await self._race(self._in_turn())
            except nats_connection.NoAnswer as exc:
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
        is_good: Callable[[nats_connection.Connection], Awaitable[bool]] | None = None,
    ) -> nats_connection.Connection:
        """To the first of them that lets us in, and is good. Raises NoAnswer."""
        won: list[nats_connection.Connection] = []

        async def attempt(server: str, over: anyio.Event) -> None:
            try:
                connection = await self._connect(server)
                if not won and (is_good is None or await _is_so(is_good, connection)) and not won:
                    won.append(connection)
                    tasks.cancel_scope.cancel()
                else:
                    await connection.drop()
            except nats_connection.NoAnswer:
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
            raise nats_connection.NoAnswer(self.reason)
        return won[0]

    async def _connect(self, server: str) -> nats_connection.Connection:
        """Raises NoAnswer."""
        client = nats_client.Client()
        lost = anyio.Event()
        told: list[Exception] = []

        async def gone() -> None:
            lost.set()

        async def erred(exc: Exception) -> None:
            told.append(exc)
            _log.debug("NATS, %s: %s", server, nats_connection.said(exc))

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
            await nats_connection.close_client(client)
            cause = told[-1] if isinstance(exc, nats_errors.NoServersError) and told else exc
            self.reason = f"{server}: {nats_connection.said(cause)}"
            if _is_shut_out(cause):
                raise _ShutOut(self.reason) from exc
            raise nats_connection.NoAnswer(self.reason) from exc
        except BaseException:
            client.abort()
            await nats_connection.close_client(client)
            raise
        connection = nats_connection.Connection(client, server, lost, self._settings)
        if self._settings.tls and not connection.has_tls:
            await connection.drop()
            self.reason = f"{server} has no TLS"
            raise _ShutOut(self.reason)
        return connection


class _ShutOut(nats_connection.NoAnswer):
    """A node is there and does not take us, which waiting does not change."""


async def _is_so(
    is_good: Callable[[nats_connection.Connection], Awaitable[bool]],
    connection: nats_connection.Connection,
) -> bool:
    """Ask; whatever ends the question otherwise closes the connection."""
    try:
        return await is_good(connection)
    except BaseException:
        await connection.drop()
        raise


async def _while_up(
    connection: nats_connection.Connection,
    serve: Callable[[nats_connection.Connection], Awaitable[None]],
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_watch, connection, tasks.cancel_scope)
        try:
            await serve(connection)
        except nats_connection.NoAnswer as exc:
            connection.trouble = f"was of no use: {exc}"
        tasks.cancel_scope.cancel()


async def _watch(connection: nats_connection.Connection, scope: anyio.CancelScope) -> None:
    while not connection.lost.is_set() and not connection.client.is_closed:
        with anyio.move_on_after(LOOK_S):
            await connection.lost.wait()
    connection.lost.set()
    for told in connection.when_lost:
        told()
    scope.cancel()


def _is_shut_out(exc: BaseException) -> bool:
    if nats_connection.is_unknown(exc):
        return True
    text = str(exc).lower()
    return "authorization" in text or "authentication" in text or "certificate" in text
