"""Jobs for any node are spread, and every node agrees on where they go."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest

from moat_kv.path import Path
from moat_kv_runner import node_facts, placing
from moat_kv_runner.node_facts import NodeFacts


@dataclass(frozen=True)
class Spec:
    require: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()


NODES = [placing.Candidate(name=name) for name in ("n1", "n2", "n3")]
WIRED = placing.Candidate(name="n4", facts=NodeFacts(tags=frozenset({"1wire", "gpio"})))


def first(job: int, nodes: list[placing.Candidate]) -> str:
    return placing.order(Path("job", job).packed, nodes, Spec())[0]


def test_order_does_not_depend_on_who_asks() -> None:
    assert placing.order(b"job", NODES, Spec()) == placing.order(b"job", NODES[::-1], Spec())


def test_only_one_node_goes_first() -> None:
    waits = [placing.wait_s(b"job", NODES, Spec(), own_name=each.name) for each in NODES]
    assert sorted(waits) == [0.0, placing.TURN_S, 2 * placing.TURN_S]


def test_jobs_are_spread() -> None:
    shares = Counter(first(job, NODES) for job in range(300))
    assert all(60 < shares[each.name] < 140 for each in NODES)


def test_node_that_goes_moves_only_its_own_jobs() -> None:
    for job in range(100):
        before = first(job, NODES)
        if before != "n3":
            assert first(job, NODES[:2]) == before


def test_unfit_node_lets_others_go_first() -> None:
    unfit = placing.wait_s(b"job", NODES, Spec(), own_name="n1", fit=False)
    for name in ("n2", "n3"):
        assert unfit > placing.wait_s(b"job", NODES, Spec(), own_name=name)


def test_node_with_the_most_room_goes_first() -> None:
    def candidate(name: str, jobs: int = 0, **facts: float) -> placing.Candidate:
        return placing.Candidate(name=name, jobs=jobs, facts=NodeFacts(**facts))  # type: ignore[arg-type]

    nodes = [
        candidate("many", jobs=4),
        candidate("few", jobs=1),
        candidate("busy", load=1.0),
        candidate("large", jobs=3, weight=10.0),
        candidate("last", weight=0.0),
    ]
    for job in range(20):
        order = placing.order(b"%d" % job, nodes, Spec())
        assert order == ["large", "few", "many", "busy", "last"]


def test_node_must_have_what_a_job_requires() -> None:
    assert placing.order(b"job", [*NODES, WIRED], Spec(require=("gpio",))) == ["n4"]
    assert placing.order(b"job", [*NODES, WIRED], Spec(require=("gpio", "i2c"))) == []


def test_node_that_has_what_a_job_prefers_goes_before_those_with_more_room() -> None:
    full = replace(WIRED, jobs=50)
    order = placing.order(b"job", [*NODES, full], Spec(prefer=("1wire", "i2c")))
    assert order[0] == "n4"
    assert set(order[1:]) == {"n1", "n2", "n3"}


@pytest.mark.parametrize(
    ("held", "weights", "given"),
    [
        ({"a": 4, "b": 0}, {"a": 1.0, "b": 1.0}, {"a": 2, "b": 0}),
        ({"a": 3, "b": 2}, {"a": 1.0, "b": 1.0}, {"a": 0, "b": 0}),
        ({"a": 8}, {"a": 1.0, "b": 3.0}, {"a": 6, "b": 0}),
        ({"a": 8}, {"a": 0.0, "b": 1.0}, {"a": 8, "b": 0}),
        ({"a": 8}, {"a": 1.0}, {"a": 0}),
        ({"a": 8}, {"a": 0.0}, {"a": 0}),
        ({}, {}, {"a": 0}),
    ],
)
def test_node_gives_up_what_is_over_its_share(
    held: dict[str, int], weights: dict[str, float], given: dict[str, int]
) -> None:
    assert {name: placing.surplus(held, weights, name) for name in given} == given


def test_what_a_member_tells_is_read_with_care() -> None:
    facts = NodeFacts(tags=frozenset({"gpio"}), weight=2.0, load=0.3)
    assert node_facts.parse(facts.as_info()) == facts
    odd: Any
    for odd in (None, 5, [], {"tags": 1, "weight": "x", "load": None}, {"weight": float("nan")}):
        assert node_facts.parse(odd) == NodeFacts()
    assert node_facts.parse({"load": 7, "weight": -1}) == NodeFacts(load=1.0, weight=0.0)
    assert 0 <= node_facts.own_load() <= 1
