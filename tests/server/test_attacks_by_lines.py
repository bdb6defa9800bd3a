"""Too many connections, failing ones, ones that come and go, ones that only send."""

from __future__ import annotations

import errno
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from moat_kv import codec, transport
from moat_kv.path import P
from moat_kv.proto import messages
from moat_kv.proto.messages import State
from moat_kv.server import connection as connection_module
from moat_kv.testing.server import running_server
from tests.client.waiting import until
from tests.line import Line, connected
from tests.server.attacking import MIB, HeldEngine, only_connection

pytestmark = pytest.mark.anyio


async def test_a_connection_too_many_is_told_so_and_the_others_go_on() -> None:
    async with running_server() as running:
        running.server.connection_limit = 2
        async with connected(running.url) as one, connected(running.url) as two:
            stream = await anyio.connect_unix(running.url.removeprefix("unix://"))
            async with stream:
                late = Line(stream)
                reply = await late.next(0)
                assert reply.state == State.ERROR
                assert "2 connections" in reply.fields["facts"]["reason"]
            await one.ask("ping")
            await two.ask("ping")
        await until(lambda: not running.server.connections)
        async with connected(running.url) as line:
            await line.ask("ping")


async def test_an_accept_that_fails_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = transport.accept
    failures = 0

    async def accept(listener: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures <= 3:
            raise OSError(errno.EMFILE if failures == 1 else errno.ECONNABORTED, "no")
        return await plain(listener)

    async with running_server(tcp=True) as running, connected(running.url) as line:
        # The one that waits already is the plain one; the next three are not.
        monkeypatch.setattr(transport, "accept", accept)
        for _ in range(2):
            async with connected(running.url) as late:
                await late.ask("ping")
        await line.ask("ping")
        assert failures > 3


async def test_clients_that_are_gone_at_once_harm_nobody() -> None:
    async with running_server() as running, connected(running.url) as line:
        for _ in range(50):
            stream = await anyio.connect_unix(running.url.removeprefix("unix://"))
            await anyio.aclose_forcefully(stream)
        await line.ask("ping")
        await until(lambda: len(running.server.connections) == 1)


async def test_what_a_client_sends_ahead_stays_in_the_sockets() -> None:
    """Also from the first moment on, and while its requests wait for the engine."""
    engine = HeldEngine()
    async with running_server(engine=engine, tcp=True) as running:
        host, _, port = running.url.removeprefix("tcp://").rpartition(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            value = codec.pack(b"x" * 100_000)
            sent = 0
            with anyio.move_on_after(1):
                while True:
                    await stream.send(messages.pack((1, "set", {"path": P("a")}, value)))
                    sent += len(value)
            # What is not held by the server is in the buffers of sockets and of this stream.
            connection = only_connection(running)
            taken = connection.held_bytes + len(connection._frames._buffer)
            chunks = getattr(connection._stream, "_protocol", None)
            if chunks is not None:
                taken += sum(len(chunk) for chunk in chunks.chunks)
            assert taken < connection_module.HELD_LIMIT_BYTES + 2 * MIB
            assert sent < 40 * MIB
            engine.release()
