"""Pairs and back-off: which side moves, without a bus and without a tree."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def test_new_switch_gives_its_entry_its_value(onewire: Any) -> None:
    pair = onewire.follow.Pair()
    assert pair.bus_is(True, "entry") == "entry"
    assert pair.expect == 0


@pytest.mark.parametrize(("prefer", "moves"), [("entry", "bus"), ("bus", "entry")])
def test_at_the_start_the_preferred_side_is_right(onewire: Any, prefer: str, moves: str) -> None:
    pair = onewire.follow.Pair()
    assert not pair.entry_is(True, 1, news=False)
    assert pair.bus_is(False, prefer) == moves


@pytest.mark.parametrize("prefer", ["entry", "bus"])
def test_wish_made_while_the_bus_was_away_is_carried_out(onewire: Any, prefer: str) -> None:
    pair = onewire.follow.Pair()
    pair.entry_is(False, 1, news=False)
    assert pair.bus_is(False, prefer) is None
    pair.bus_lost()
    assert pair.entry_is(True, 2)
    assert pair.bus_is(False, prefer) == "bus"


def test_own_write_to_the_entry_moves_nothing_when_it_comes_back(onewire: Any) -> None:
    pair = onewire.follow.Pair()
    pair.entry_is(False, 1, news=False)
    pair.bus_is(False, "entry")
    assert pair.bus_is(True, "entry") == "entry"
    pair.entry_written(True, 2)
    assert not pair.entry_is(True, 2)
    assert pair.bus_is(True, "entry") is None


def test_own_older_write_that_comes_back_late_moves_nothing(onewire: Any) -> None:
    pair = onewire.follow.Pair()
    pair.entry_is(False, 1, news=False)
    pair.bus_is(False, "entry")
    pair.bus_is(True, "entry")
    pair.entry_written(True, 2)
    pair.bus_is(False, "entry")
    pair.entry_written(False, 3)
    assert not pair.entry_is(True, 2)
    assert not pair.entry_is(False, 3)
    assert pair.bus_is(False, "entry") is None


def test_wish_that_failed_is_tried_again_at_each_look(onewire: Any) -> None:
    pair = onewire.follow.Pair()
    pair.entry_is(False, 1, news=False)
    pair.bus_is(False, "entry")
    assert pair.entry_is(True, 2)
    assert pair.bus_is(False, "entry") == "bus"
    assert pair.bus_is(False, "entry") == "bus"
    pair.bus_written(True)
    assert pair.bus_is(True, "entry") is None


def test_deleted_entry_comes_back_from_the_bus(onewire: Any) -> None:
    pair = onewire.follow.Pair()
    pair.entry_is(True, 1, news=False)
    pair.bus_is(True, "entry")
    assert not pair.entry_is(None, 2)
    assert pair.bus_is(True, "entry") == "entry"
    assert pair.expect == 0


STEPS = st.lists(
    st.tuples(st.sampled_from(["entry", "bus", "away", "look", "deliver"]), st.booleans()),
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS, prefer=st.sampled_from(["entry", "bus"]))
def test_both_sides_agree_once_things_are_quiet(
    onewire: Any, steps: list[tuple[str, bool]], prefer: str
) -> None:
    """Whatever happened before, two quiet looks settle it, and then nothing moves any more."""
    pair = onewire.follow.Pair()
    world: dict[str, Any] = {"bus": False, "entry": None, "rev": 0}
    waiting: list[tuple[bool | None, int]] = []

    def deliver() -> None:
        while waiting:
            value, rev = waiting.pop(0)
            if pair.entry_is(value, rev) and pair.bus is not None:
                world["bus"] = value
                pair.bus_written(value)

    def look() -> str | None:
        side: str | None = pair.bus_is(world["bus"], prefer)
        if side == "bus":
            world["bus"] = pair.entry
            pair.bus_written(pair.entry)
        elif side == "entry" and pair.expect == (0 if world["entry"] is None else world["rev"]):
            world["rev"] += 1
            world["entry"] = world["bus"]
            waiting.append((world["bus"], world["rev"]))
            pair.entry_written(world["bus"], world["rev"])
        return side

    for what, value in steps:
        if what == "entry":
            world["rev"] += 1
            world["entry"] = value
            waiting.append((value, world["rev"]))
        elif what == "bus":
            world["bus"] = value
        elif what == "away":
            pair.bus_lost()
        elif what == "look":
            look()
        else:
            deliver()
    for _ in range(2):
        deliver()
        look()
    deliver()
    assert world["bus"] == world["entry"]
    assert look() is None


def test_delays_double_up_to_the_ceiling_and_start_again_after_success(onewire: Any) -> None:
    back_off = onewire.follow.BackOff(1, 10)
    assert [back_off.next_s() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    back_off.reset()
    assert back_off.next_s() == 1


def test_delay_stays_at_the_ceiling_however_long_it_fails(onewire: Any) -> None:
    back_off = onewire.follow.BackOff(0.5, 60)
    delays = [back_off.next_s() for _ in range(5000)]
    assert delays[-1] == 60
