"""Waits between attempts to connect."""

from __future__ import annotations

import random

from moat_kv.client import backoff


def test_waits_double_up_to_the_longest_and_start_anew_after_a_line_that_held() -> None:
    waits = backoff.Backoff(chance=lambda: 1.0)
    taken = [waits.next_s() for _ in range(24)]
    assert taken[:3] == [0.05, 0.1, 0.2]
    assert taken[-1] == backoff.LONGEST_S == max(taken)
    waits.held(backoff.LONGEST_S)
    assert waits.next_s() == backoff.LONGEST_S
    waits.held(backoff.LONGEST_S + 1)
    assert waits.next_s() == backoff.FIRST_S


def test_each_wait_is_spread_over_its_upper_half() -> None:
    chance = random.Random(3)
    firsts = [backoff.Backoff(chance.random).next_s() for _ in range(500)]
    assert 0.5 * backoff.FIRST_S <= min(firsts) < 0.55 * backoff.FIRST_S
    assert 0.95 * backoff.FIRST_S < max(firsts) <= backoff.FIRST_S


def test_no_wait_is_long_within_a_grace_of_two_seconds() -> None:
    waits = backoff.Backoff(chance=lambda: 1.0)
    away_s, taken = 0.0, [0.0]
    while away_s < 2:
        taken.append(waits.next_s())
        away_s += taken[-1]
    assert max(taken) <= 0.2
    assert waits.next_s() > 0.2
