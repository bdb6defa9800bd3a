"""What the log does not acknowledge in time, or never: stored once, over nothing newer."""

from __future__ import annotations

import pathlib

import pytest

from moat_kv.entry import Record
from tests.client.waiting import until
from tests.engine.network_nodes import A, B, in_conflict, is_pending, nodes, unpacked, written

pytestmark = pytest.mark.anyio


async def test_an_answer_that_is_late_is_given_from_the_outbox(tmp_path: pathlib.Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        one.remote.hangs = True
        first = one.submit(A, b"1")
        record = (await until(lambda: first))[0][0]
        assert is_pending(record)
        assert one.canvas.shown() == {A: b"1"}
        second = one.submit(A, b"2")
        await until(lambda: second)
        assert one.canvas.shown() == {A: b"2"}
        one.remote.answer()
        await one.settled()
        assert written(log) == [b"1", b"2"]
        assert two.canvas.shown() == one.canvas.shown() == {A: b"2"}
        assert in_conflict(log) == []


async def test_what_hung_does_not_undo_what_was_written_after_its_late_answer(
    tmp_path: pathlib.Path,
) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        await two.set(A, b"before")
        one.remote.hangs = True
        outcome = one.submit(A, b"hung")
        assert is_pending((await until(lambda: outcome))[0][0])
        log.now += 1.0
        await two.set(A, b"after")
        one.remote.answer()
        await one.settled()
        assert written(log)[:2] == [b"before", b"after"]
        assert one.canvas.shown()[A] == two.canvas.shown()[A] == b"after"
        (conflict,) = in_conflict(log)
        assert unpacked(conflict) == b"hung"


async def test_what_hung_wins_over_nothing_that_was_made_after_it(tmp_path: pathlib.Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        one.remote.hangs = True
        outcome = one.submit(A, b"hung")
        assert is_pending((await until(lambda: outcome))[0][0])
        two.remote.cut()
        log.now += 1.0
        assert is_pending(await two.set(A, b"later"))
        log.now += 9.0
        one.remote.answer()
        await one.settled()
        two.remote.heal()
        await two.settled()
        assert one.canvas.shown()[A] == two.canvas.shown()[A] == b"later"
        (conflict,) = in_conflict(log)
        assert unpacked(conflict) == b"hung"


async def test_what_hung_wins_over_nothing_that_came_after_it_though_it_waited_on(
    tmp_path: pathlib.Path,
) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        one.remote.hangs = True
        outcome = one.submit(A, b"hung")
        log.now += 1.0
        await two.set(A, b"after")
        log.now += 1.0
        await two.set(B, b"later still")  # which n1 sees before it keeps its own
        assert is_pending((await until(lambda: outcome))[0][0])
        one.remote.cut()
        log.now += 9.0
        one.remote.hangs = False
        one.remote.heal()
        await one.settled()
        assert one.canvas.shown()[A] == two.canvas.shown()[A] == b"after"
        (conflict,) = in_conflict(log)
        assert unpacked(conflict) == b"hung"


async def test_of_writes_in_flight_together_the_last_one_stays_also_if_it_is_late(
    tmp_path: pathlib.Path,
) -> None:
    """The second was made before the first was stored, which it knew nothing of."""
    async with nodes(tmp_path, "n1", "n2") as (log, (one, _two)):
        one.remote.hangs = True
        first = one.submit(A, b"1")
        second = one.submit(A, b"2")
        log.now += 1.0
        one.remote.answer_one()
        assert not is_pending((await until(lambda: first))[0][0])
        assert is_pending((await until(lambda: second))[0][0])
        one.remote.cut()
        one.remote.hangs = False
        one.remote.heal()
        await one.settled()
        assert written(log) == [b"1", b"2"]
        assert in_conflict(log) == []


@pytest.mark.parametrize("happened", [True, False])
@pytest.mark.parametrize("late", [True, False])
async def test_a_write_of_which_nothing_is_known_is_stored_once(
    tmp_path: pathlib.Path, happened: bool, late: bool
) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        one.remote.hangs = True
        outcome = one.submit(A, b"1")
        if late:
            await until(lambda: outcome)
        one.remote.cut(happened=happened)
        one.remote.hangs = False
        assert isinstance((await until(lambda: outcome))[0][0], Record)
        await one.restart(linked=False)
        if happened:
            await two.set(A, b"on top")
        one.remote.heal()
        await one.settled()
        expected = [b"1", b"on top"] if happened else [b"1"]
        assert written(log) == expected
        assert in_conflict(log) == []
