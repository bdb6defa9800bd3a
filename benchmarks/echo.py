"""The yardstick: a plain echo server and client, over the same sockets in the same event loop.

anyio, msgpack, one awaited call a request, and nothing else: no paths, no checks, no limits. Both
gather what there is to send while a send is under way, as anybody would who wants throughput. The
server is run as a process of its own, `python -m benchmarks.echo FILE`; it listens on a free port
of loopback and on the Unix socket FILE, and says its port in its first line.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import msgpack

READ_BYTES = 128 * 1024


class EchoClient:
    """One line to the echo server. `call` may be used by any number of tasks."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._seq = 0
        self._calls: dict[int, anyio.Event] = {}
        self._answers: dict[int, list[Any]] = {}
        self._outgoing: list[bytes] = []
        self._sending = False

    async def call(self, action: str, arguments: Any, value: Any) -> list[Any]:
        """Send `[seq, action, arguments, value]`; the same comes back."""
        self._seq = seq = self._seq + 1
        done = self._calls[seq] = anyio.Event()
        self._outgoing.append(msgpack.packb([seq, action, arguments, value]))
        if not self._sending:
            await self._send()
        await done.wait()
        return self._answers.pop(seq)

    async def _send(self) -> None:
        self._sending = True
        while self._outgoing:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            await self._stream.send(data)
        self._sending = False

    async def read(self) -> None:
        """Take answers until cancelled."""
        unpacker = msgpack.Unpacker()
        while True:
            unpacker.feed(await self._stream.receive(READ_BYTES))
            for answer in unpacker:
                seq = answer[0]
                self._answers[seq] = answer
                self._calls.pop(seq).set()


@asynccontextmanager
async def open_echo(port: int, socket: str | None) -> AsyncIterator[EchoClient]:
    """A client of the echo server: on its Unix socket if that is given, else on its port."""
    stream: anyio.abc.ByteStream
    if socket is not None:
        stream = await anyio.connect_unix(socket)
    else:
        stream = await anyio.connect_tcp("127.0.0.1", port)
    async with stream, anyio.create_task_group() as tasks:
        client = EchoClient(stream)
        tasks.start_soon(client.read)
        yield client
        tasks.cancel_scope.cancel()


async def _answer(stream: anyio.abc.ByteStream) -> None:
    unpacker = msgpack.Unpacker(max_buffer_size=64 << 20)
    pack = msgpack.Packer().pack
    async with stream:
        while True:
            try:
                unpacker.feed(await stream.receive(READ_BYTES))
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return
            answers = [pack(request) for request in unpacker]
            if answers:
                await stream.send(b"".join(answers))


async def _serve(socket: str) -> None:
    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    unix = await anyio.create_unix_listener(socket)
    async with tcp, unix, anyio.create_task_group() as tasks:
        print(tcp.extra(anyio.abc.SocketAttribute.local_port), flush=True)
        tasks.start_soon(tcp.serve, _answer)
        tasks.start_soon(unix.serve, _answer)


def has_uvloop() -> bool:
    return importlib.util.find_spec("uvloop") is not None


if __name__ == "__main__":
    anyio.run(_serve, sys.argv[1], backend_options={"use_uvloop": has_uvloop()})
