"""Results as mappings, and the options of writes; pure."""

from __future__ import annotations

from typing import Any

import pytest

from moat_kv import Chain, NotGiven, P, errors
from moat_kv.client import results, writes


def test_a_row_without_a_value_is_a_deletion() -> None:
    row = results.event_of([P("a"), None, 7, 1.5, "n:1:2"], "e")
    assert dict(row) == {"path": P("a"), "rev": 7, "at": 1.5, "id": "n:1:2", "chain": None}
    assert len(row) == 5
    assert "value" not in row
    assert repr(row) == "WatchEvent(path=P('a'), rev=7, at=1.5, id='n:1:2')"


def test_results_are_equal_by_content_and_kind() -> None:
    one = results.row_of([P("a"), b"\x01", 7, 1.5, "x"], "e")
    same = results.row_of([P("a"), b"\x01", 7, 1.5, "x"], "e")
    other = results.row_of([P("a"), b"\x02", 7, 1.5, "x"], "e")
    assert one == same != other
    assert one != results.event_of([P("a"), b"\x01", 7, 1.5, "x"], "e")
    assert one != {"path": P("a")}
    with pytest.raises(TypeError):
        hash(one)


def test_not_given_is_false_and_there_is_one() -> None:
    assert not NotGiven
    assert repr(NotGiven) == str(NotGiven) == "NotGiven"


@pytest.mark.parametrize(
    ("given", "travels"),
    [
        ({}, {}),
        ({"chain": None}, {"expect": 0}),
        ({"chain": Chain("e", 5)}, {"expect": 5}),
        ({"expect": 0}, {"expect": 0}),
        ({"idem": True, "strict": True}, {"idem": True, "strict": True}),
        ({"guard": (P("g"), 1), "ttl_s": 2.5}, {"guard": [P("g"), 1], "ttl_s": 2.5}),
        ({"fence": (P("f"), 1), "session": "id"}, {"fence": [P("f"), 1], "session": "id"}),
    ],
    ids=["none", "no-chain", "chain", "expect", "flags", "guard", "fence"],
)
def test_only_options_that_were_given_travel(
    given: dict[str, Any], travels: dict[str, Any]
) -> None:
    assert writes.options_of(P("a"), "e", writes.UNBOUND, **given) == travels


def test_a_writes_own_options_go_before_the_bound_ones() -> None:
    bound = writes.Binding(fence=(P("f"), 1), session="bound")
    assert writes.options_of(P("a"), "e", bound) == {"fence": [P("f"), 1], "session": "bound"}
    own = writes.options_of(P("a"), "e", bound, fence=(P("o"), 2), session="own")
    assert own == {"fence": [P("o"), 2], "session": "own"}


def test_a_guard_is_a_path_and_a_revision() -> None:
    guard: Any = ("a", 1)
    with pytest.raises(TypeError):
        writes.options_of(P("a"), "e", writes.UNBOUND, guard=guard)


def test_a_chain_of_another_epoch_is_a_conflict() -> None:
    with pytest.raises(errors.Conflict, match="read the entry anew"):
        writes.options_of(P("a"), "e", writes.UNBOUND, chain=Chain("f", 5))
