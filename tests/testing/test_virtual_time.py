"""Time passes only when it is told to, each timer at its time, never while something goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.to_thread
import pytest

from moat_kv.testing import virtual_builtins, virtual_time
from moat_kv.testing.virtual_time import VirtualClock

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def run(backend: str, main: Callable[[VirtualClock], Awaitable[None]]) -> None:
    """Run this in a loop by a virtual clock."""
    clock = virtual_time.clock_for(backend)

    async def call() -> None:
        await main(clock)

    anyio.run(call, backend=backend, backend_options=clock.backend_options)


@BACKENDS
def test_day_passes_at_once_and_timers_fire_in_their_order(backend: str) -> None:
    async def main(clock: VirtualClock) -> None:
        seen: list[tuple[str, float]] = []

        async def tick(name: str, every_s: float) -> None:
            while True:
                await anyio.sleep(every_s)
                seen.append((name, anyio.current_time()))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick, "slow", 6 * 3600.0)
            tasks.start_soon(tick, "fast", 4 * 3600.0)
            await clock.advance(24 * 3600)
            tasks.cancel_scope.cancel()
        expected = [("slow", h) for h in (6, 12, 18, 24)] + [
            ("fast", h) for h in (4, 8, 12, 16, 20, 24)
        ]
        assert sorted(seen) == sorted((name, h * 3600.0) for name, h in expected)
        assert [at for _, at in seen] == sorted(at for _, at in seen)
        assert anyio.current_time() == 24 * 3600

    run(backend, main)


@BACKENDS
def test_limits_of_time_are_kept_to_the_moment(backend: str) -> None:
    async def main(clock: VirtualClock) -> None:
        ended: list[float] = []

        async def limited() -> None:
            with anyio.move_on_after(10):
                await anyio.sleep(11)
            ended.append(anyio.current_time())
            with anyio.fail_after(10):
                await anyio.sleep(5)
            ended.append(anyio.current_time())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(limited)
            await clock.advance(9.5)
            assert ended == []
            await clock.advance(0.5)
            assert ended == [10]
            await clock.advance(100)
        assert ended == [10, 15]

    run(backend, main)


@pytest.mark.parametrize(
    ("backend", "whose"), [("asyncio", "anyio"), ("trio", "anyio"), ("asyncio", "asyncio")]
)
def test_time_stands_still_while_a_thread_is_at_work(backend: str, whose: str) -> None:
    async def main(clock: VirtualClock) -> None:
        go = threading.Event()
        seen: list[str] = []

        async def slow() -> None:
            if whose == "anyio":
                await anyio.to_thread.run_sync(lambda: go.wait(10))
            else:
                await asyncio.get_running_loop().run_in_executor(None, go.wait, 10)
            seen.append("thread")

        async def timer() -> None:
            await anyio.sleep(1)
            seen.append("timer")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow)
            tasks.start_soon(timer)
            threading.Timer(0.05, go.set).start()
            await clock.advance(1)
        assert seen == ["thread", "timer"]

    run(backend, main)


@BACKENDS
def test_sockets_are_seen_through_before_time_passes(backend: str) -> None:
    async def main(clock: VirtualClock) -> None:
        import socket

        one, other = socket.socketpair()
        one.setblocking(False)
        other.setblocking(False)
        heard: list[tuple[float, bytes]] = []

        async def answer() -> None:
            for _ in range(50):
                await anyio.wait_readable(other)
                other.send(other.recv(10) + b"!")

        async def ask() -> None:
            for _ in range(50):
                one.send(b"x")
                with anyio.fail_after(1):
                    await anyio.wait_readable(one)
                heard.append((anyio.current_time(), one.recv(10)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            tasks.start_soon(ask)
            await clock.advance(3600)
        assert heard == [(0, b"x!")] * 50
        one.close()
        other.close()

    run(backend, main)


@BACKENDS
def test_what_the_loop_does_not_know_of_can_hold_time_up(backend: str) -> None:
    async def main(clock: VirtualClock) -> None:
        until = time.monotonic() + 0.05
        clock.at_work.append(lambda: time.monotonic() < until)
        await clock.advance(3600)
        assert time.monotonic() >= until
        with pytest.raises(ValueError, match="does not go back"):
            await clock.advance(-1)

    run(backend, main)


def test_other_loops_are_refused() -> None:
    with pytest.raises(ValueError, match="asyncio or trio"):
        virtual_time.clock_for("curio")


def test_code_with_these_builtins_lives_by_another_clock() -> None:
    now = datetime(2026, 3, 29, 1, 0, tzinfo=UTC).timestamp()
    scope: dict[str, Any] = {
        "__builtins__": virtual_builtins.of_clock(lambda: now, lambda: 5.0),
    }
    text = """
import time as clock, datetime, json
from datetime import date, datetime as moment, UTC
from time import monotonic
found = [
    clock.time(), clock.time_ns(), monotonic(), clock.gmtime().tm_hour,
    datetime.datetime.now(UTC).isoformat(), moment.utcnow().isoformat(),
    moment(2020, 1, 1).year, date(2020, 1, 2).day,
    isinstance(moment.now(), moment), isinstance(moment.now(), date),
    abs((moment.fromtimestamp(clock.time()) - moment.now()).total_seconds()),
    json.dumps(1), clock.strftime("%Y") == str(date.today().year),
]
"""
    exec(text, scope)
    assert scope["found"] == [
        now,
        now * 1e9,
        5.0,
        1,
        "2026-03-29T01:00:00+00:00",
        "2026-03-29T01:00:00",
        2020,
        2,
        True,
        True,
        0,
        "1",
        True,
    ]
    assert time.time() > now, "the process keeps its own"
