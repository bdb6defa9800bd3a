"""An earlier write that comes over a later, acknowledged one is found, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults import linearizability, undone
from tests.faults.history import Operation


def operation(number: int, begin: float, end: float, **fields: Any) -> Operation:
    fields = {"kind": "write", "outcome": "ok", "value": number, **fields}
    return Operation(
        number=number, client=f"c{number}", key="k", begin=begin, end=end, strict=True, **fields
    )


@pytest.mark.parametrize("outcome", ["pending", "unknown"])
def test_what_hung_and_came_over_a_later_write_is_found(outcome: str) -> None:
    hung = operation(1, 0.0, 1.0, outcome=outcome)
    later = operation(2, 2.0, 2.1, rev=5)
    (found,) = undone.find([hung, later], {"k": {5: 2, 6: 1}})
    assert (found.later, found.earlier, found.rev) == (later, hung, 6)
    assert "was undone at revision 6" in str(found)
    # That is what this is for.
    assert all(verdict.is_fine for verdict in linearizability.check([hung, later]))


def test_what_came_before_or_was_under_way_at_the_same_time_has_undone_nothing() -> None:
    hung = operation(1, 0.0, 1.0, outcome="pending")
    later = operation(2, 2.0, 2.1, rev=5)
    assert undone.find([hung, later], {"k": {4: 1, 5: 2}}) == []
    assert undone.find([hung, later], {"k": {5: 2}, "other": {6: 1}}) == []
    beside = operation(3, 0.5, 0.6, rev=5)
    assert undone.find([hung, beside], {"k": {5: 3, 6: 1}}) == []
    # Nobody was promised that it would stay.
    refused = operation(4, 2.0, 2.1, outcome="failed")
    kept = operation(5, 2.0, 2.1, outcome="pending")
    assert undone.find([hung, refused, kept], {"k": {5: 5, 6: 1}}) == []


def test_deletions_in_the_log_are_nobodys_writes() -> None:
    assert undone.find([operation(1, 0.0, 1.0, rev=1)], {"k": {1: 1, 2: None}}) == []
