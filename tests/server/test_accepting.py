"""What a server does with a client's line before it reads from it."""

from __future__ import annotations

import socket

import anyio
import anyio.abc
import pytest

from moat_kv.server import accepting

pytestmark = pytest.mark.anyio


async def test_what_is_sent_over_tcp_does_not_wait_for_acknowledgements() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    served: list[int] = []
    done = anyio.Event()

    async def serve(stream: anyio.abc.ByteStream) -> None:
        raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        served.append(raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        done.set()
        await stream.aclose()

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(accepting.accept_from, [listener], serve, tasks)
        async with await anyio.connect_tcp("127.0.0.1", port):
            with anyio.fail_after(30):
                await done.wait()
        tasks.cancel_scope.cancel()
    assert served[0] != 0
