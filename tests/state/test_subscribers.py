"""Subscribers: in order, one at a time, where they subscribed from."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time

import anyio
import anyio.to_thread
import pytest

from moat_kv.state import State, asettle, delivery, metrics, settle, venues
from tests.state.models import Counter


@pytest.fixture(autouse=True)
def loaded(no_models: None) -> None:
    with State() as state:
        state.load(Counter())


def bump(times: int = 1) -> None:
    for _ in range(times):
        with State(Counter) as state:
            counter = state.checkout(Counter)
            counter.n += 1
            state.commit(counter)


def figure(name: str) -> float:
    return metrics.registry.get_sample_value(name, {"model": "Counter"}) or 0.0


def test_subscribers_are_told_of_each_state_in_order() -> None:
    first: list[tuple[str, int]] = []
    with State() as state:
        state.subscribe(Counter, lambda counter: first.append(("a", counter.n)))
        state.subscribe(Counter, lambda counter: first.append(("b", counter.n)))
    bump(3)
    assert settle(30)
    assert first == [(who, n) for n in (1, 2, 3) for who in ("a", "b")]


def test_async_subscribers_of_a_plain_thread_run_in_the_background_too() -> None:
    told: list[tuple[int, bool]] = []

    async def callback(counter: Counter) -> None:
        await asyncio.sleep(0.001)
        told.append((counter.n, venues.background.is_here()))

    State().subscribe(Counter, callback)
    bump(3)
    assert settle(30)
    assert told == [(1, True), (2, True), (3, True)]


def test_the_old_state_is_told_if_wanted() -> None:
    told: list[tuple[int, int]] = []
    State().subscribe(Counter, lambda new, old: told.append((old.n, new.n)), old=True)
    bump(2)
    assert settle(30)
    assert told == [(0, 1), (1, 2)]


def test_a_subscriber_to_an_attribute_learns_of_its_changes_alone() -> None:
    told: list[tuple[str, int, list[int]]] = []
    with State() as state:
        state.subscribe(Counter, lambda new: told.append(("log", new.n, new.log)), attribute="log")
        state.subscribe(
            Counter, lambda new: told.append(("both", new.n, [])), attribute=("n", "log")
        )
    bump()
    with State(Counter) as state:
        counter = state.checkout(Counter)
        counter.log.append(7)
        state.commit(counter)
        state.commit(counter)
    assert settle(30)
    assert told == [("both", 1, []), ("log", 1, [7]), ("both", 1, [])]


def test_what_subscribers_get_is_their_own() -> None:
    told: list[list[int]] = []

    def spoil(counter: Counter) -> None:
        counter.log.append(1)

    with State() as state:
        state.subscribe(Counter, spoil)
        state.subscribe(Counter, lambda counter: told.append(counter.log))
    bump()
    assert settle(30)
    assert told == [[]]
    assert State().checkout(Counter).log == []


def test_a_subscriber_may_commit_what_it_gets() -> None:
    def next_one(counter: Counter) -> None:
        if counter.n < 5:
            counter.n += 1
            with State(Counter) as state:
                state.commit(counter)

    State().subscribe(Counter, next_one)
    bump()
    assert settle(30)
    assert State().checkout(Counter).n == 5


def test_a_failing_subscriber_is_logged_and_counted_and_stops_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_to_compare(counter: Counter) -> object:
        if counter.n:
            raise RuntimeError("nobody can tell")
        return None

    monkeypatch.setattr(Counter, "unlike", property(fail_to_compare), raising=False)
    told: list[int] = []
    before = figure("myosin_cb_exc_count_total")

    async def fail_later(counter: Counter) -> None:
        await asyncio.sleep(0)
        raise ValueError("async")

    with State() as state:
        state.subscribe(Counter, lambda counter: 1 // 0)
        state.subscribe(Counter, fail_later)
        state.subscribe(Counter, print, attribute="unlike")
        state.subscribe(Counter, lambda counter: told.append(counter.n))
    with caplog.at_level(logging.ERROR):
        bump(2)
        assert settle(30)
    assert told == [1, 2]
    assert figure("myosin_cb_exc_count_total") == before + 6
    assert "ZeroDivisionError" in caplog.text
    assert "ValueError: async" in caplog.text


def test_a_subscription_that_was_cancelled_is_told_nothing() -> None:
    told: list[int] = []
    with State() as state:
        subscription = state.subscribe(Counter, lambda counter: told.append(counter.n))
    bump()
    assert settle(30)
    subscription.cancel()
    bump()
    assert settle(30)
    assert told == [1]


def test_subscribers_run_when_the_lock_is_released() -> None:
    told = threading.Event()
    State().subscribe(Counter, lambda counter: told.set())
    with State(Counter) as state:
        state.commit(state.checkout(Counter))
        assert not told.wait(0.05)
    assert told.wait(30)


def test_never_two_at_a_time_and_commits_do_not_wait() -> None:
    running, most = 0, 0
    go_on = threading.Event()

    def slow(counter: Counter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        go_on.wait(30)
        running -= 1

    with State() as state:
        state.subscribe(Counter, slow)
        state.subscribe(Counter, slow)
    bump(5)
    assert not settle(0.05)
    go_on.set()
    assert settle(30)
    assert most == 1


def test_more_changes_than_may_wait_are_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "WAITING_LIMIT", 3)
    told: list[tuple[int, int]] = []
    began, go_on = threading.Event(), threading.Event()

    def slow(new: Counter, old: Counter) -> None:
        told.append((old.n, new.n))
        began.set()
        go_on.wait(30)

    before = figure("myosin_cb_merged_count_total")
    State().subscribe(Counter, slow, old=True)
    bump()
    assert began.wait(30)
    bump(10)
    go_on.set()
    assert settle(30)
    assert told == [(0, 1), (1, 2), (2, 3), (3, 11)]
    assert figure("myosin_cb_merged_count_total") == before + 7


def test_settle_inside_of_a_subscriber_is_an_error() -> None:
    failed: list[str] = []

    def callback(counter: Counter) -> None:
        try:
            settle()
        except RuntimeError as exc:
            failed.append(str(exc))

    State().subscribe(Counter, callback)
    bump()
    assert settle(30)
    assert failed == ["a subscriber cannot wait for itself"]


# In event loops -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_who_subscribed_from_an_event_loop_is_called_there() -> None:
    told: list[tuple[str, int, int]] = []
    here = threading.get_ident()

    async def callback(counter: Counter) -> None:
        await anyio.sleep(0.001)
        told.append(("async", counter.n, threading.get_ident()))

    with State() as state:
        state.subscribe(Counter, callback)
        state.subscribe(
            Counter, lambda counter: told.append(("plain", counter.n, threading.get_ident()))
        )
    await anyio.to_thread.run_sync(bump, 2)
    async with State(Counter) as inner:
        counter = inner.checkout(Counter)
        counter.n += 1
        await inner.commit(counter)
    with pytest.raises(RuntimeError, match="await asettle"):
        settle()
    assert await asettle(30)
    assert told == [(kind, n, here) for n in (1, 2, 3) for kind in ("async", "plain")]


@pytest.mark.anyio
async def test_asettle_has_a_time_limit() -> None:
    go_on = anyio.Event()

    async def callback(counter: Counter) -> None:
        await go_on.wait()

    State().subscribe(Counter, callback)
    bump()
    assert not await asettle(0.05)
    assert not await asettle(0.25)
    go_on.set()
    assert await asettle()


@pytest.mark.anyio
async def test_a_failing_subscriber_does_not_harm_its_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def callback(counter: Counter) -> None:
        raise ValueError("inside")

    State().subscribe(Counter, callback)
    with caplog.at_level(logging.ERROR):
        bump()
        assert await asettle(30)
    assert "inside" in caplog.text


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_when_its_loop_has_ended_a_subscriber_is_called_in_the_background(backend: str) -> None:
    told: list[bool] = []

    async def subscribe() -> None:
        State().subscribe(Counter, lambda counter: told.append(venues.background.is_here()))

    anyio.run(subscribe, backend=backend)
    bump()
    assert settle(30)
    assert told == [True]


def test_when_its_loop_stops_before_its_turn_too() -> None:
    told: list[bool] = []
    loop = asyncio.new_event_loop()

    async def subscribe() -> None:
        State().subscribe(Counter, lambda counter: told.append(venues.background.is_here()))
        loop.call_soon(stop)

    def stop() -> None:
        loop.stop()
        bump()  # accepted by a loop that runs nothing any more

    task = loop.create_task(subscribe())
    loop.run_forever()
    assert settle(30)
    assert told == [True]
    loop.run_until_complete(task)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_a_subscriber_whose_loop_was_closed_under_it_is_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[int] = []
    loop = asyncio.new_event_loop()
    tasks: list[asyncio.Task[None] | None] = []

    async def stuck(counter: Counter) -> None:
        tasks.append(asyncio.current_task())
        loop.stop()
        await asyncio.Event().wait()

    async def subscribe() -> None:
        State().subscribe(Counter, stuck)
        bump()

    task = loop.create_task(subscribe())
    State().subscribe(Counter, lambda counter: told.append(counter.n))
    loop.run_forever()
    assert not settle(0.05)  # it may go on yet
    loop.close()
    with caplog.at_level(logging.ERROR):
        assert settle(30)
    assert "ended in it" in caplog.text
    assert told == [1]
    assert task.done()
    for each in tasks:
        assert each is not None
        each._log_destroy_pending = False  # type: ignore[attr-defined]
        each.get_coro().close()
    assert told == [1]


_SCRIPT = """
import time
from moat_kv.state import State, StateModel
class Counter(StateModel):
    n: int = 0
def slow(counter):
    time.sleep({sleep_s})
    print(counter.n, flush=True)
with State() as state:
    state.load(Counter())
    state.subscribe(Counter, slow)
with State(Counter) as state:
    state.commit(Counter(n=3))
"""


def test_the_end_of_the_process_waits_for_subscribers() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(sleep_s=0.2)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (ended.stdout, ended.returncode) == ("3\n", 0)


def test_but_not_for_ever() -> None:
    script = "from moat_kv.state import settling\nsettling.AT_EXIT_S = 0.1\n"
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", script + _SCRIPT.format(sleep_s=60)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ended.returncode == 0
    assert "had not been told everything" in ended.stderr
    assert time.monotonic() - began < 50
