"""Jobs for any node are spread, and every node agrees on where they go."""

from __future__ import annotations

from collections import Counter

from moat_kv.path import Path
from moat_kv_runner import placing

NODES = ["n1", "n2", "n3"]


def first(job: int, nodes: list[str]) -> str:
    return placing.order(Path("job", job).packed, nodes)[0]


def test_order_does_not_depend_on_who_asks() -> None:
    assert placing.order(b"job", NODES) == placing.order(b"job", reversed(NODES))


def test_only_one_node_goes_first() -> None:
    waits = sorted(placing.wait_s(b"job", NODES, own_name=name) for name in NODES)
    assert waits == [0.0, placing.TURN_S, 2 * placing.TURN_S]


def test_node_that_is_not_listed_yet_has_its_turn_too() -> None:
    assert placing.wait_s(b"job", [], own_name="n1") == 0.0


def test_jobs_are_spread() -> None:
    shares = Counter(first(job, NODES) for job in range(300))
    assert all(60 < shares[name] < 140 for name in NODES)


def test_node_that_goes_moves_only_its_own_jobs() -> None:
    for job in range(100):
        before = first(job, NODES)
        if before != "n3":
            assert first(job, ["n1", "n2"]) == before


def test_unfit_node_lets_others_go_first() -> None:
    unfit = placing.wait_s(b"job", NODES, own_name="n1", fit=False)
    assert all(unfit > placing.wait_s(b"job", NODES, own_name=name) for name in ("n2", "n3"))
