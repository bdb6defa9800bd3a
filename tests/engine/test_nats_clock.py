"""NATS's time is told from the quickest messages, however late others come."""

from __future__ import annotations

from moat_kv.engine import nats_clock

NOW = 1_800_000_000.0


def clock_of(*messages: tuple[float, float]) -> nats_clock.Clock:
    """Messages: when each was stored after NOW, and how long it took."""
    clock = nats_clock.Clock()
    for stored, took_s in messages:
        clock.came(NOW + stored, stored + took_s)
    return clock


def test_it_is_not_set_before_anything_has_come() -> None:
    assert not clock_of().is_set
    assert clock_of((0, 0.1)).is_set


def test_the_quickest_message_counts() -> None:
    clock = clock_of((1, 0.5), (2, 0.01), (3, 1.2))
    assert abs(clock.now(10.0) - (NOW + 10 - 0.01)) < 1e-6


def test_what_waited_while_the_line_was_cut_does_not_set_it_back() -> None:
    before = [(float(second), 0.01) for second in range(0, 200, 3)]
    late = [(201.0, 300.0), (210.0, 291.0), (501.0, 0.3)]
    clock = clock_of(*before, *late)
    assert abs(clock.now(510.0) - (NOW + 510)) < 0.02
    # When it has been slow for long enough, that is the best that is known.
    clock = clock_of(*before, *late, *[(502.0 + 3 * n, 0.3) for n in range(41)])
    assert abs(clock.now(700.0) - (NOW + 700 - 0.3)) < 0.02


def test_it_follows_one_that_is_set_back_after_a_while() -> None:
    clock = clock_of(*[(float(second), 0.01) for second in range(0, 100, 3)])
    for second in range(100, 300, 3):
        clock.came(NOW + second - 20, second + 0.01)
    assert abs(clock.now(300.0) - (NOW + 300 - 20)) < 0.02
