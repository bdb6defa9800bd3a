"""NATS's time is told from what its messages have in common, however slow the line is."""

from __future__ import annotations

import random

import pytest

from moat_kv.engine import nats_clock

NOW = 1_800_000_000.0
#: Where a machine's own date is not to be of use.
LONG_AGO = 0.0


class Line:
    """A clock that hears of messages; when they were stored is counted from NOW, as `up_s` is."""

    def __init__(self) -> None:
        self.clock = nats_clock.Clock()
        self._rev = 0

    def came(self, stored: float, took_s: float) -> None:
        """Another server's message."""
        self._rev += 1
        self.clock.came(self._rev, NOW + stored, stored + took_s)

    def made(self, sent: float, *, there_s: float, back_s: float, wrong_s: float = 0.0) -> None:
        """A message of this server that is acknowledged, and comes a moment later."""
        self._rev += 1
        stored = sent + there_s
        self.clock.acknowledged(self._rev, sent, stored + back_s)
        self.clock.came(self._rev, NOW + wrong_s + stored, stored + back_s + 0.05)

    def off_s(self, up_s: float, wall_s: float = LONG_AGO) -> float:
        """By how much it is wrong then."""
        return self.clock.now(up_s, wall_s) - (NOW + up_s)


def line_of(*messages: tuple[float, float]) -> Line:
    """Others' messages: when each was stored, and how long it took."""
    line = Line()
    for stored, took_s in messages:
        line.came(stored, took_s)
    return line


def test_it_is_not_set_before_anything_has_come() -> None:
    assert not Line().clock.is_set
    assert Line().clock.uncertain_s == float("inf")
    assert line_of((0, 0.1)).clock.is_set


def test_as_long_as_nothing_was_acknowledged_the_quickest_message_counts() -> None:
    line = line_of((1, 0.5), (2, 0.01), (3, 1.2))
    assert line.off_s(10.0) == pytest.approx(-0.01, abs=1e-6)
    assert line.off_s(10.0, NOW + 10) == pytest.approx(-0.01, abs=1e-6)
    assert line.clock.uncertain_s == float("inf")


def test_what_waited_while_the_line_was_cut_does_not_set_it_back() -> None:
    before = [(float(second), 0.01) for second in range(0, 200, 3)]
    late = [(201.0, 300.0), (210.0, 291.0), (501.0, 0.3)]
    line = line_of(*before, *late)
    assert line.off_s(510.0) == pytest.approx(0, abs=0.06)
    # When it has been slow for long enough, that is the best that is known.
    line = line_of(*before, *late, *[(502.0 + 3 * n, 0.3) for n in range(41)])
    assert line.off_s(700.0) == pytest.approx(-0.3, abs=0.02)


def test_it_follows_one_that_is_set_back_after_a_while() -> None:
    line = line_of(*[(float(second), 0.01) for second in range(0, 100, 3)])
    for second in range(100, 300, 3):
        line.clock.came(second, NOW + second - 20, second + 0.01)
    assert line.off_s(300.0) == pytest.approx(-20, abs=0.02)


def test_one_acknowledged_message_is_enough_however_old_all_others_are() -> None:
    line = line_of((-9.0, 10.0), (-8.0, 9.1))
    assert line.off_s(2.0) < -8
    line.made(3.0, there_s=0.6, back_s=0.8)
    assert line.clock.uncertain_s == pytest.approx(1.4)
    assert abs(line.off_s(4.0)) <= 0.7


def test_a_quick_way_there_and_a_quick_way_back_may_be_those_of_different_messages() -> None:
    line = Line()
    line.made(1.0, there_s=0.02, back_s=1.0)
    assert line.clock.uncertain_s == pytest.approx(1.02)
    line.made(5.0, there_s=0.9, back_s=0.03)
    assert line.clock.uncertain_s == pytest.approx(0.05)
    assert abs(line.off_s(8.0)) <= 0.025


@pytest.mark.parametrize("order", ["came first", "acknowledged first"])
def test_it_does_not_matter_which_comes_first(order: str) -> None:
    clock = nats_clock.Clock()
    if order == "came first":
        clock.came(7, NOW + 1.2, 1.5)
    clock.acknowledged(7, 1.0, 1.4)
    if order == "acknowledged first":
        clock.came(7, NOW + 1.2, 1.5)
    assert clock.uncertain_s == pytest.approx(0.4)


def test_another_record_stands_for_one_that_never_comes() -> None:
    clock = nats_clock.Clock()
    clock.acknowledged(7, 1.0, 1.4)
    clock.came(6, NOW + 1.1, 1.6)
    assert clock.is_waiting
    clock.came(9, NOW + 1.7, 2.0)
    assert not clock.is_waiting
    assert clock.uncertain_s == pytest.approx(1.0)  # 1.7 to 2.0 for this one, 1.0 for the other


def test_the_machines_own_time_is_believed_where_it_is_possible() -> None:
    line = Line()
    line.made(1.0, there_s=0.1, back_s=0.9)
    assert line.off_s(2.0) != 0.0
    assert line.off_s(2.0, NOW + 2) == 0.0
    for wrong_s in (-3600.0, 3600.0, -1.0, 0.2):
        assert abs(line.off_s(2.0, NOW + 2 + wrong_s)) <= 0.5


@pytest.mark.parametrize("wrong_s", [3600.0, -3600.0])
def test_a_clock_of_nats_that_is_set_is_followed_at_once(wrong_s: float) -> None:
    line = Line()
    line.made(1.0, there_s=0.01, back_s=0.01)
    line.made(2.0, there_s=0.1, back_s=0.1, wrong_s=wrong_s)
    assert line.off_s(3.0) == pytest.approx(wrong_s, abs=0.01)
    assert line.clock.uncertain_s == pytest.approx(0.2)


def test_in_another_log_nothing_follows_from_the_numbers_of_the_one_before() -> None:
    line = line_of(*[(float(n), 0.1) for n in range(9)])
    line.clock.forget_revisions()
    line.clock.acknowledged(2, 100.0, 100.4)
    line.clock.came(2, NOW + 100.2, 100.6)
    assert abs(line.off_s(101.0)) <= 0.2
    assert line.clock.uncertain_s <= 0.4


def test_two_clocks_that_move_apart_are_told_apart_from_a_wrong_one() -> None:
    line = Line()
    day_s = 86_400.0
    line.made(1.0, there_s=0.01, back_s=0.01)
    # Cut off for a day, while this machine has lost two seconds.
    line.clock.came(50, NOW + day_s, day_s - 1)
    line.clock.acknowledged(51, day_s, day_s + 2)
    line.clock.came(51, NOW + day_s + 3, day_s + 2)
    assert 1.0 <= line.off_s(day_s + 3) <= 3.0


def test_it_is_never_wrong_by_more_than_it_says() -> None:
    chance = random.Random(5)
    for _ in range(200):
        line, second = Line(), 0.0
        for _ in range(chance.randrange(1, 200)):
            second += chance.uniform(0.1, 9)
            if chance.random() < 0.5:
                line.came(second - chance.choice([0, 30]), 30 + chance.uniform(0, 2))
            else:
                line.made(second, there_s=chance.uniform(0, 2), back_s=chance.uniform(0, 2))
        for wrong_s in (0.0, chance.uniform(-3, 3), -1e6):
            off_s = abs(line.off_s(second, NOW + second + wrong_s))
            assert off_s <= line.clock.uncertain_s + 1e-6
