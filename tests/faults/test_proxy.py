"""The proxy of the fault tests does to lines what it says, on both event loops."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from moat_kv import open_client
from moat_kv.path import P
from moat_kv.testing.proxy import Proxy, Way, proxied
from moat_kv.testing.server import running_server
from tests.faults.serving import eventually

pytestmark = pytest.mark.anyio

Handler = Callable[[anyio.abc.SocketStream], Awaitable[None]]

#: What did not come within this was kept back, in seconds. Nothing here takes half as long.
QUIET_S = 0.15
#: What is sent and not kept back has come within this, in seconds.
RECEIVE_S = 10.0


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    """A server on a free port, which calls the handler with each line."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(listener.serve, handler))
            yield listener.extra(anyio.abc.SocketAttribute.local_port)
            tasks.cancel_scope.cancel()


async def echo(stream: anyio.abc.SocketStream) -> None:
    async with stream:
        try:
            async for data in stream:
                await stream.send(data)
        except anyio.BrokenResourceError:
            pass


@asynccontextmanager
async def echoing() -> AsyncIterator[Proxy]:
    """A proxy before a server that sends back what it gets."""
    async with listening(echo) as port, proxied(port) as proxy:
        yield proxy


async def connected(proxy: Proxy) -> anyio.abc.SocketStream:
    return await anyio.connect_tcp("127.0.0.1", proxy.port)


async def receive(stream: anyio.abc.SocketStream, count: int) -> bytes:
    """Just so many bytes."""
    data = b""
    with anyio.fail_after(RECEIVE_S):
        while len(data) < count:
            data += await stream.receive(count - len(data))
    return data


async def is_quiet(stream: anyio.abc.SocketStream) -> bool:
    """Nothing comes, neither data nor an end."""
    with anyio.move_on_after(QUIET_S):
        await stream.receive()
        return False
    return True


async def is_broken(stream: anyio.abc.SocketStream) -> bool:
    """It breaks with an error; an ordinary end is none."""
    with anyio.fail_after(30):
        try:
            while True:
                await stream.receive()
        except anyio.BrokenResourceError:
            return True
        except anyio.EndOfStream:
            return False


async def test_bytes_and_ends_pass() -> None:
    async with echoing() as proxy, await connected(proxy) as line:
        data = bytes(range(256)) * 4096
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(line.send, data)
            assert await receive(line, len(data)) == data
        await line.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await line.receive()
        assert proxy.passed_bytes == {"there": len(data), "back": len(data)}
        await eventually(lambda: proxy.open_lines == 0)


async def test_a_cut_keeps_all_back_until_it_is_healed() -> None:
    async with echoing() as proxy, await connected(proxy) as line:
        await line.send(b"1")
        assert await receive(line, 1) == b"1"
        proxy.cut()
        await line.send(b"2")
        await line.send(b"3")
        assert await is_quiet(line)
        proxy.heal()
        assert await receive(line, 2) == b"23"


@pytest.mark.parametrize(("way", "comes"), [("there", 0), ("back", 1)], ids=["there", "back"])
async def test_a_cut_may_be_of_one_way(way: Way, comes: int) -> None:
    async with echoing() as proxy, await connected(proxy) as line:
        await line.send(b"1")
        assert await receive(line, 1) == b"1"
        proxy.cut(way)
        await line.send(b"2")
        assert await is_quiet(line)
        await eventually(lambda: proxy.passed_bytes["there"] >= 1 + comes)
        assert proxy.passed_bytes["there"] == 1 + comes
        proxy.heal()
        assert await receive(line, 1) == b"2"


async def test_nobody_hears_through_a_cut_that_the_other_end_has_gone() -> None:
    ended = anyio.Event()

    async def read(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async for _ in stream:
                pass
        ended.set()

    async with listening(read) as port, proxied(port) as proxy:
        async with await connected(proxy) as line:
            await line.send(b"1")
            await eventually(lambda: proxy.passed_bytes["there"] == 1)
            proxy.cut()
        with anyio.move_on_after(QUIET_S):
            await ended.wait()
        assert not ended.is_set()
        proxy.heal()
        with anyio.fail_after(30):
            await ended.wait()


async def test_new_lines_do_not_come_through_a_cut() -> None:
    async with echoing() as proxy:
        proxy.cut("back")
        async with await connected(proxy) as line:
            await line.send(b"1")
            assert await is_quiet(line)
            assert proxy.passed_bytes["there"] == 0
            proxy.heal()
            assert await receive(line, 1) == b"1"


async def test_refusing_breaks_old_lines_and_new_ones() -> None:
    async with echoing() as proxy, await connected(proxy) as old:
        await old.send(b"1")
        assert await receive(old, 1) == b"1"
        proxy.refuse()
        assert await is_broken(old)
        async with await connected(proxy) as new:
            assert await is_broken(new)
        proxy.heal()
        async with await connected(proxy) as new:
            await new.send(b"2")
            assert await receive(new, 1) == b"2"


async def test_a_cut_line_can_be_given_up_when_it_is_healed() -> None:
    async with echoing() as proxy, await connected(proxy) as line:
        proxy.cut()
        await line.send(b"1")
        proxy.heal(reset=True)
        assert await is_broken(line)


async def test_who_connects_to_nobody_is_told() -> None:
    # Bound and not listened to, so that nobody else listens there either.
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with proxied(nobody.getsockname()[1]) as proxy, await connected(proxy) as line:
            assert await is_broken(line)


async def test_delay_is_for_each_chunk_and_not_for_their_sum() -> None:
    async with echoing() as proxy, await connected(proxy) as line:
        proxy.slow(0.2)
        began = time.monotonic()
        for number in range(100):
            await line.send(b"%02d" % number)
            await anyio.sleep(0.002)
        data = await receive(line, 200)
        took_s = time.monotonic() - began
        assert data == b"".join(b"%02d" % number for number in range(100))
        # Their sum is twice as long as this.
        assert 0.4 <= took_s < RECEIVE_S
        proxy.slow(2 * RECEIVE_S)
        proxy.slow()
        await line.send(b"x")
        assert await receive(line, 1) == b"x"


async def test_chunks_that_are_held_delay_those_behind_them() -> None:
    async with echoing() as proxy, await connected(proxy) as line:
        proxy.slow(hold_share=1.0, hold_s=(0.1, 0.2))
        began = time.monotonic()
        await line.send(b"1")
        assert await receive(line, 1) == b"1"
        assert time.monotonic() - began >= 0.2
        proxy.slow(hold_share=0.3, hold_s=(0.01, 0.05))
        sent = b"".join(b"%03d" % number for number in range(100))
        for start in range(0, len(sent), 3):
            await line.send(sent[start : start + 3])
            await anyio.lowlevel.checkpoint()
        assert await receive(line, len(sent)) == sent


async def test_flapping_lets_all_through_in_the_end() -> None:
    async with echoing() as proxy, await connected(proxy) as line:
        async with anyio.create_task_group() as tasks:

            async def flap() -> None:
                await proxy.flap(up_s=0.01, down_s=0.02, times=5)

            tasks.start_soon(flap)
            for number in range(40):
                await line.send(b"%02d" % number)
                await anyio.sleep(0.005)
        expected = b"".join(b"%02d" % number for number in range(40))
        assert await receive(line, 80) == expected


async def test_healing_ends_flapping() -> None:
    async with echoing() as proxy, await connected(proxy) as line:
        async with anyio.create_task_group() as tasks:

            async def flap() -> None:
                await proxy.flap(up_s=0.01, down_s=60)

            tasks.start_soon(flap)
            await anyio.sleep(0.05)
            await line.send(b"1")
            assert await is_quiet(line)
            proxy.heal()
            assert await receive(line, 1) == b"1"


async def test_a_client_works_through_it_and_survives_a_cut() -> None:
    async with running_server(tcp=True) as running, proxied(running.url) as proxy:
        async with open_client(proxy.url) as client:
            proxy.slow(0.02, hold_share=0.05, hold_s=(0.02, 0.1))
            for number in range(5):
                await client.set(P("a"), number)
            proxy.cut()
            got = []

            async def get() -> None:
                got.append((await client.get(P("a"))).value)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(get)
                await anyio.sleep(QUIET_S)
                assert got == []
                proxy.heal()
            assert got == [4]
            assert proxy.begun == 1
