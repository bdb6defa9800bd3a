"""A server that may open no more files: those whom it serves do not notice."""

from __future__ import annotations

import pathlib
import resource
from contextlib import AsyncExitStack

import anyio
import pytest

from moat_kv import P, errors, open_client
from tests.faults.serving import eventually, served
from tests.line import connected

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


async def test_without_descriptors_those_who_are_served_go_on(tmp_path: pathlib.Path) -> None:
    async with served(tmp_path) as server, open_client(server.url) as client:
        server.limit(resource.RLIMIT_NOFILE, server.open_files() + 9)
        greeted: list[int] = []

        async def come(number: int) -> None:
            async with connected(server.url):
                greeted.append(number)
                await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(come, number)
            await eventually(lambda: len(greeted) > 2)
            await anyio.sleep(0.3)
            for number in range(20):
                await client.set(P("a"), number)
                assert (await client.get(P("a"))).value == number
            assert len(greeted) < 12
            tasks.cancel_scope.cancel()
        # Whoever goes makes room.
        async with connected(server.url) as line:
            await line.ask("ping")
        assert "Traceback" not in server.log.read_text()


async def test_a_client_too_many_is_told_the_limit(tmp_path: pathlib.Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        # The server inherits it; our own open files are well below.
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(served(tmp_path))
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for _ in range(40):
                await stack.enter_async_context(connected(server.url))
            with pytest.raises(errors.CannotConnect, match="40 connections, which is its limit"):
                async with open_client(server.url):
                    pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
