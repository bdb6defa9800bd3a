"""One logic, in an event loop and without."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from moat_kv import P, blocking
from moat_kv.coord import ground
from moat_kv.testing.server import RunningServer


async def logic(on: ground.Ground, word: str) -> str:
    async with on.mutex():
        await on.io(anyio.sleep, 0)
        result = await on.user(str.upper, word)
    assert isinstance(result, str)
    return result


async def shout(word: str) -> str:
    await anyio.lowlevel.checkpoint()
    return word.upper()


@pytest.mark.anyio
async def test_in_an_event_loop_users_functions_may_be_async() -> None:
    on = ground.AsyncGround()
    assert await logic(on, "a") == "A"
    assert await on.user(shout, "b") == "B"


def test_in_a_thread_logic_runs_to_its_end_and_users_functions_are_plain(
    served: RunningServer,
) -> None:
    with blocking.open_client(served.url) as client:
        on = ground.BlockingGround(client)
        assert ground.drive(logic(on, "a")) == "A"
        assert ground.drive(on.io(client.asynchronous.get, P("x"))).rev == 0
        with pytest.raises(TypeError, match="shout is async"):
            ground.drive(on.user(shout, "b"))
        with pytest.raises(TypeError, match="must be a plain function"):
            ground.drive(on.user(lambda: client.run(later)))


class Later:
    def __await__(self) -> object:
        raise AssertionError("awaited")


async def later() -> Later:
    return Later()


def test_what_waits_for_something_else_is_refused() -> None:
    async def wrong() -> None:
        await Pause()

    with pytest.raises(RuntimeError, match="there is none here"):
        ground.drive(wrong())


class Pause:
    def __await__(self):  # type: ignore[no-untyped-def]
        yield
