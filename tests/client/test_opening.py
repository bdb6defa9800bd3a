"""The client's life: what its body raises, what is cancelled, and what ends with it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from moat_kv import P, errors, open_client
from moat_kv.testing.server import running_server
from tests.client.waiting import both, others_wait, until

pytestmark = pytest.mark.anyio


async def test_an_error_in_the_body_passes_as_it_is() -> None:
    async with running_server() as running:
        with pytest.raises(errors.Conflict):
            async with open_client(running.url) as client:
                await client.set(P("a"), 1, expect=5)


async def test_tasks_of_the_client_end_before_its_line() -> None:
    written = anyio.Event()

    async def handler(client: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await client.set(P("farewell"), 1)
                written.set()

    async with running_server() as running:
        async with open_client(running.url) as client:
            client.task_group.start_soon(handler, client)
            await others_wait()
        assert written.is_set()
        await until(lambda: not running.server.connections)


async def test_whoever_is_cancelled_can_still_use_the_line_to_clean_up() -> None:
    found: list[Any] = []
    async with running_server() as running:
        with anyio.CancelScope() as scope:
            async with open_client(running.url) as client:
                try:
                    scope.cancel()
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        for number in range(3):
                            await client.set(P("n"), number)
                        found.append((await client.get(P("n"))).value)
    assert found == [2]


async def test_a_session_that_was_never_left_does_not_keep_its_client_open() -> None:
    async with running_server() as running:
        with anyio.fail_after(30):
            async with open_client(running.url) as client:
                await client.session(ttl_s=90, grace_s=90).__aenter__()


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
async def test_an_end_in_the_body_passes_as_it_is(end: type[BaseException]) -> None:
    async with running_server() as running:
        with pytest.raises(end):
            async with open_client(running.url):
                raise end


async def test_a_failing_task_of_the_client_ends_its_body() -> None:
    async def handler() -> None:
        raise LookupError("mine")

    async with running_server() as running:
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # raised by the context
            async with open_client(running.url) as client:
                client.task_group.start_soon(handler)
                await anyio.sleep_forever()
    assert caught.group_contains(LookupError)


async def test_a_client_that_is_cancelled_closes_its_line_and_its_session() -> None:
    async with running_server() as running:
        with anyio.CancelScope() as scope:
            async with open_client(running.url) as client, client.session():
                assert running.server.describe()["sessions"] == 1
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        # It asks for that, but does not wait for ever.
        await until(lambda: running.server.describe()["sessions"] == 0)
        await until(lambda: not running.server.connections)


async def test_a_client_that_is_cancelled_at_any_step_of_its_start_leaves_nothing() -> None:
    async with running_server() as running:
        for delay_s in (0, 0.0005, 0.001, 0.002, 0.004):
            with anyio.move_on_after(delay_s):
                async with open_client(running.url):
                    await anyio.sleep(delay_s)
        await until(lambda: not running.server.connections)


async def test_a_closed_client_says_so() -> None:
    async with both() as (_, client):
        pass
    with pytest.raises(errors.Disconnected, match="closed"):
        await client.set(P("a"), 1)
    with pytest.raises(errors.Disconnected, match="closed"):
        await client.get(P("a"))
    with pytest.raises(errors.Disconnected, match="closed"):
        async with client.watch(P("a")):
            pass
