"""Who runs a job in a part of the network, and who goes on with it afterwards: the rules."""

from __future__ import annotations

import itertools

import pytest

from moat_kv_runner import parting
from moat_kv_runner.parting import Contender, Part

LONG = Contender(name="long", since=10.0, load=0.9)
SHORT = Contender(name="short", since=20.0, load=0.5)
IDLE = Contender(name="idle", since=15.0, load=0.0)

#: own name, policy, members in order, those that run it, who had it -> place in line.
TURNS: dict[str, tuple[Part, int | None]] = {
    "each-first": (Part(own_name="a", policy="each", order=["a", "b"]), 0),
    "each-second": (Part(own_name="b", policy="each", order=["a", "b"]), 1),
    "each-alone": (Part(own_name="a", policy="each", order=["a"], holder="elsewhere"), 0),
    "each-had-it": (Part(own_name="b", policy="each", order=["a", "b"], holder="b"), 0),
    "each-another-had-it": (Part(own_name="a", policy="each", order=["a", "b"], holder="b"), 1),
    "each-runs-here": (
        Part(own_name="a", policy="each", order=["a", "long"], running=[LONG]),
        None,
    ),
    "each-cannot": (Part(own_name="a", policy="each", order=["b"]), None),
    "each-nobody": (Part(own_name="a", policy="each"), None),
    "fenced": (Part(own_name="a", policy="fenced", order=["a"], holder="a"), None),
    "stick-had-it": (Part(own_name="b", policy="stick", order=["a", "b"], holder="b"), 0),
    "stick-elsewhere": (Part(own_name="a", policy="stick", order=["a"], holder="b"), None),
    "stick-free": (Part(own_name="a", policy="stick", order=["a"]), None),
    "stick-cannot": (Part(own_name="a", policy="stick", order=["b"], holder="a"), None),
}

#: The rule -> who wins among all three, and without that one.
WINNERS = {
    "oldest": ("long", "idle"),
    "newest": ("short", "idle"),
    "lowest_load": ("idle", "short"),
}

#: own name, policy, who has not let go, who runs it -> to whom a free claim is left.
WAITING: dict[str, tuple[str, str, str | None, list[str], str | None]] = {
    "free": ("a", "each", None, [], None),
    "runs-elsewhere": ("a", "each", None, ["c", "b"], "b"),
    "runs-here": ("a", "each", None, ["a", "b"], None),
    "fenced": ("a", "fenced", None, ["b"], "b"),
    "stick-free": ("a", "stick", None, [], None),
    "stick-own": ("a", "stick", "a", [], None),
    "stick-another": ("a", "stick", "b", [], "b"),
    "stick-another-though-it-runs-here": ("a", "stick", "b", ["a"], "b"),
    "no-more-stick": ("a", "each", "b", [], None),
}


@pytest.mark.parametrize("which", list(TURNS))
def test_place_in_line_to_begin_without_a_claim(which: str) -> None:
    part, expected = TURNS[which]
    assert parting.turn(part) == expected


def test_every_rule_and_policy_is_tried() -> None:
    assert {part.policy for part, _ in TURNS.values()} == set(parting.POLICIES)
    assert tuple(WINNERS) == parting.RULES


@pytest.mark.parametrize("rule", parting.RULES)
def test_rule_picks_the_same_one_whoever_asks(rule: str) -> None:
    first, second = WINNERS[rule]
    for each in itertools.permutations((LONG, SHORT, IDLE)):
        assert parting.winner(rule, each) == first
        assert parting.winner(rule, [one for one in each if one.name != first]) == second


@pytest.mark.parametrize("rule", parting.RULES)
def test_where_a_rule_knows_no_difference_the_name_decides(rule: str) -> None:
    twins = [Contender(name=name, since=1.0) for name in ("b", "a")]
    assert parting.winner(rule, twins) == "a"


def test_of_equal_loads_the_oldest_goes_on() -> None:
    older = Contender(name="z", since=1.0, load=0.5)
    assert parting.winner("lowest_load", [SHORT, older]) == "z"


@pytest.mark.parametrize("rule", parting.RULES)
def test_of_two_runs_in_one_part_exactly_one_goes_on(rule: str) -> None:
    runs = [LONG, SHORT, IDLE]
    left = [
        each.name
        for each in runs
        if parting.loses_to(Part(own_name=each.name, policy="each", running=runs), rule) is None
    ]
    assert left == [WINNERS[rule][0]]


@pytest.mark.parametrize("which", list(WAITING))
def test_claim_that_is_free_is_left_to(which: str) -> None:
    own, policy, sticks_to, rivals, expected = WAITING[which]
    found = parting.waits_for(own_name=own, policy=policy, sticks_to=sticks_to, rivals=rivals)
    assert found == expected
