"""The check for lost writes finds what is lost, says where, and nothing else."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.faults import membership, register_runs
from tests.faults.history import Operation, Value


def operation(number: int, key: str = "", **fields: object) -> Operation:
    """A write of its number to its own key, answered before the next one is sent."""
    fields = {"kind": "write", "outcome": "ok", "value": number, "rev": number, **fields}
    return Operation(
        number=number,
        client="a",
        key=key or f"k{number}",
        begin=number,
        end=number + 0.5,
        **fields,  # type: ignore[arg-type]
    )


def numbers(operations: Sequence[Operation]) -> list[int]:
    return [one.number for one in operations]


TEN = [operation(number) for number in range(1, 11)]


def found_of(operations: Sequence[Operation], *lost: int) -> dict[str, Value]:
    return {
        one.key: one.value for one in operations if one.number not in lost and one.value is not None
    }


def test_what_was_acknowledged_and_is_there_is_fine() -> None:
    result = membership.check(TEN, found_of(TEN))
    assert result.is_fine
    assert str(result) == (
        "10 acknowledged, 0 lost (prefix 0, middle 0, end 0); 0 pending, 0 lost;"
        " 0 that nobody wrote"
    )


def test_losses_are_sorted_into_prefix_middle_and_end() -> None:
    result = membership.check(TEN, found_of(TEN, 1, 2, 5, 8, 10))
    assert not result.is_fine
    assert [numbers(each) for each in (result.prefix, result.middle, result.end)] == [
        [1, 2],
        [5, 8],
        [10],
    ]
    assert numbers(membership.check(TEN, {}).prefix) == list(range(1, 11))


def test_what_was_replaced_or_deleted_is_not_lost() -> None:
    ones = [operation(number, "k") for number in (1, 2)]
    assert membership.check(ones, {"k": 2}).is_fine
    assert numbers(membership.check(ones, {"k": 1}).lost) == [2]
    deleted = [*ones, operation(3, "k", kind="delete", value=None, deleted=True)]
    assert membership.check(deleted, {}).is_fine
    assert numbers(membership.check(deleted, {"k": 2}).lost) == [3]
    again = [*deleted, operation(4, "k", kind="delete", value=None, rev=3, deleted=False)]
    assert membership.check(again, {}).is_fine


def test_what_nobody_knows_of_may_have_replaced_it() -> None:
    late = operation(1, "k", outcome="unknown", rev=None)
    write = operation(2, "k")
    assert membership.check([late, write], {"k": 1}).is_fine
    assert membership.check([late, write], {"k": 2}).is_fine
    assert numbers(membership.check([late, write], {}).lost) == [2]


def test_what_is_pending_is_there_or_among_the_conflicts() -> None:
    pending = operation(1, "k", outcome="pending", rev=None)
    other = operation(2, "k", rev=7)
    beside = dataclasses.replace(other, begin=1.2)
    assert membership.check([pending], {"k": 1}).is_fine
    assert numbers(membership.check([pending], {}).pending_lost) == [1]
    assert numbers(membership.check([pending, beside], {"k": 2}).pending_lost) == [1]
    assert membership.check([pending, beside], {"k": 2}, [1]).is_fine
    assert membership.check([pending, other], {"k": 2}).is_fine


def test_what_had_failed_or_was_never_written_must_not_be_there() -> None:
    failed = operation(1, outcome="failed", error="Detached")
    assert membership.check([failed], {}).is_fine
    assert "k1: 1, which had failed (Detached)" in membership.check([failed], {"k1": 1}).strangers
    assert membership.check(TEN, found_of(TEN) | {"k3": 99}).strangers == (
        "k3: 99, which nobody wrote there",
    )
    assert not membership.check(TEN, found_of(TEN) | {"else": 1}).is_fine


def test_a_value_that_is_written_twice_is_refused() -> None:
    twice = [operation(1, "k"), operation(2, "k", value=1)]
    with pytest.raises(ValueError, match="written twice"):
        membership.check(twice, {"k": 1})


@given(seed=st.integers(0, 2**32), open_share=st.sampled_from([0.0, 0.1, 0.3]))
def test_what_a_register_holds_in_the_end_is_never_a_loss(seed: int, open_share: float) -> None:
    operations, value = register_runs.run_to_end(
        random.Random(seed), count=60, open_share=open_share
    )
    # A register's late writes are not pending: they never become conflicts.
    operations = [
        dataclasses.replace(one, outcome="unknown") if one.outcome == "pending" else one
        for one in operations
    ]
    found: dict[str, Value] = {} if value is None else {"k": value}
    assert membership.check(operations, found).is_fine
    last = max(one.end or 0 for one in operations)
    write = operation(999, "k", rev=10**9)
    write = dataclasses.replace(write, begin=last + 1, end=last + 2)
    assume(not any(one.is_open for one in operations))
    assert membership.check([*operations, write], found).lost == (write,)
