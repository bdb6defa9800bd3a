"""From a stream to a server that is known: whatever is at the other end."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path as FilePath
from typing import Any

import anyio
import anyio.abc
import pytest
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from moat_kv import errors
from moat_kv.client import address, handshake
from moat_kv.proto import messages
from moat_kv.proto.messages import State
from tests.client.peer import Peer, memory_line

pytestmark = pytest.mark.anyio


async def test_a_greeting_tells_about_the_server() -> None:
    ours, theirs = memory_line()
    await Peer(theirs).greet(node="n1", epoch="e", revision=12)
    line = await handshake.greet(ours, "memory")
    assert (line.server.node, line.server.epoch, line.server.revision) == ("n1", "e", 12)
    assert line.server.url == "memory"


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no moat-kv server"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no moat-kv server"),
        (b"-ERR unknown command\r\n", "no moat-kv server"),
        (b"\x00\x00\x00\x04abcd", "no moat-kv server"),
        (messages.pack((0, State.REPLY, {}, None)), "does not greet"),
        (messages.pack((0, State.HELLO, {"protocol": 1}, None)), "greeting is not as it should"),
        (
            messages.pack((0, State.HELLO, {"protocol": 2}, None)),
            "version 2 of the protocol, this client version 1",
        ),
        (
            messages.pack((0, State.ERROR, messages.error_fields(errors.Detached("x")), None)),
            "the server refuses: detached: x",
        ),
    ],
    ids=["http", "ssh", "redis", "frame", "reply", "poor", "version", "refusal"],
)
async def test_another_peer_cannot_be_connected_to(sent: bytes, reason: str) -> None:
    ours, theirs = memory_line()
    await theirs.send(sent)
    with pytest.raises(errors.CannotConnect, match=reason):
        await handshake.greet(ours, "memory")


async def test_a_peer_that_closes_at_once_cannot_be_connected_to() -> None:
    ours, theirs = memory_line()
    await theirs.aclose()
    with pytest.raises(errors.CannotConnect, match="closed before any greeting"):
        await handshake.greet(ours, "memory")


@settings(max_examples=60)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_a_clear_error(data: bytes) -> None:
    async def attempt() -> None:
        ours, theirs = memory_line()
        await theirs.send(data or b"\0")
        await theirs.aclose()
        with pytest.raises(errors.CannotConnect):
            await handshake.greet(ours, "memory")

    trio.run(attempt)


def test_a_silent_peer_is_given_up_after_the_limit() -> None:
    async def attempt() -> float:
        ours, _theirs = memory_line()
        began = trio.current_time()
        with pytest.raises(errors.CannotConnect, match="no greeting within 5 s"):
            await handshake.greet(ours, "memory")
        return trio.current_time() - began

    clock = trio.testing.MockClock(autojump_threshold=0)
    assert math.isclose(trio.run(attempt, clock=clock), handshake.GREETING_LIMIT_S)


# Through a socket -------------------------------------------------------------------------------


@asynccontextmanager
async def served(serve: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[address.Address]:
    """A listener whose clients meet that peer."""

    async def meet(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await serve(Peer(stream))

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, meet)
            yield address.parse(f"tcp://127.0.0.1:{port}")
            tasks.cancel_scope.cancel()


async def test_hello_tells_what_was_seen_within_the_same_epoch_only() -> None:
    asked: list[dict[str, Any]] = []

    async def serve(peer: Peer) -> None:
        await peer.greet(epoch="one")
        asked.append((await peer.answer_hello()).arguments)

    async with served(serve) as where:
        for epoch in ("one", "another"):
            line = await handshake.reach(where, name="me", seen=9, epoch=epoch, limit_s=30)
            await line.stream.aclose()
    assert asked == [
        {"client": "me", "seen": 9, "epoch": "one"},
        {"client": "me", "seen": 0, "epoch": "one"},
    ]


async def test_a_server_that_is_behind_says_so() -> None:
    async def serve(peer: Peer) -> None:
        await peer.greet()
        request = await peer.request("hello")
        error = messages.error_fields(errors.Behind(7, 9))
        await peer.reply(request.seq, error, state=State.ERROR)

    async with served(serve) as where:
        with pytest.raises(errors.Behind):
            await handshake.reach(where, name="me", seen=9, epoch="one", limit_s=30)


async def test_nobody_there_is_a_clear_error(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo

    def know_none(host: Any, *args: Any, **options: Any) -> Any:
        # As a name server would say; where there is none that takes a while.
        if host in ("no.such.host.invalid", b"no.such.host.invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", know_none)
    # Bound, so that nobody else gets it, and not listened to.
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        for url, reason in (
            (f"tcp://127.0.0.1:{mute.getsockname()[1]}", "connection refused"),
            (f"unix://{tmp_path}/none", "there is no such socket"),
            ("tcp://no.such.host.invalid:1", "no such host"),
        ):
            with pytest.raises(errors.CannotConnect, match=reason) as caught:
                await handshake.reach(address.parse(url), name="me", seen=0, epoch="", limit_s=30)
            assert caught.value.url == url
