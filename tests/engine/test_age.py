"""Ages are right over suspends and restarts, and bounded where only a wall clock is left."""

from __future__ import annotations

import time

import hypothesis
import pytest
from hypothesis import strategies

from moat_kv.engine import age
from moat_kv.engine.age import Moment

THEN = Moment("boot-1", 1_000.0, 5_000.0)


def test_within_one_run_of_the_machine_the_wall_clock_is_not_asked() -> None:
    assert age.age_s(THEN, Moment("boot-1", 1_060.0, 99_000.0), 3_600) == 60
    assert age.age_s(THEN, Moment("boot-1", 1_060.0, 0.0), 3_600) == 60


@pytest.mark.parametrize(
    ("wall", "expected"),
    [(5_300.0, 300.0), (5_010.0, 40.0), (0.0, 40.0), (99_000.0, 600.0)],
    ids=["right", "little-behind", "far-behind", "far-ahead"],
)
def test_across_a_reboot_the_wall_clock_is_believed_within_bounds(
    wall: float, expected: float
) -> None:
    assert age.age_s(THEN, Moment("boot-2", 40.0, wall), 600) == expected


@hypothesis.given(
    same_boot=strategies.booleans(),
    up_s=strategies.floats(0, 1e9),
    wall=strategies.floats(0, 1e10),
    contact=strategies.floats(0, 1e9),
)
def test_an_age_is_never_negative_and_never_above_the_last_contact(
    same_boot: bool, up_s: float, wall: float, contact: float
) -> None:
    now = Moment("boot-1" if same_boot else "boot-2", up_s, wall)
    assert 0 <= age.age_s(THEN, now, contact) <= contact


def test_the_present_moment_is_this_machine_s() -> None:
    first, second = age.now(), age.now()
    assert first.boot == second.boot
    assert 0 < first.up_s <= second.up_s
    assert abs(second.wall - time.time()) < 60
