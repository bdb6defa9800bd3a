"""The checker accepts what a register can have answered, and finds what none can have."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import random
import re
import time
from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.faults import history, linearizability, register_runs
from tests.faults.history import Operation
from tests.faults.register import Unusable

SEEDS = st.integers(0, 2**32)


def verdict(operations: Sequence[Operation], **options: bool) -> linearizability.Verdict:
    (one,) = linearizability.check(operations, **options)
    return one


@given(seed=SEEDS, clients=st.integers(1, 8), open_share=st.sampled_from([0.0, 0.1, 0.4]))
def test_what_a_register_answered_is_accepted(seed: int, clients: int, open_share: float) -> None:
    operations = register_runs.run(
        random.Random(seed), clients=clients, count=80, open_share=open_share
    )
    assert verdict(operations).is_fine
    assert verdict(operations, exact_conflicts=False).is_fine


@pytest.mark.parametrize("name", register_runs.SPOILERS)
@given(seed=SEEDS, open_share=st.sampled_from([0.0, 0.1, 0.3]))
def test_one_wrong_answer_is_found(name: str, seed: int, open_share: float) -> None:
    chance = random.Random(seed)
    operations = register_runs.run(chance, clients=6, count=60, open_share=open_share)
    spoiled = register_runs.SPOILERS[name](operations, chance)
    assume(spoiled is not None)
    assert spoiled is not None
    found = verdict(spoiled)
    assert found.answer == "wrong"
    assert found.window
    assert set(found.window) <= set(spoiled)
    assert len(found.window) <= 6


# Against trying all orders ------------------------------------------------------------------------


def can_be_ordered(operations: Sequence[Operation]) -> bool:
    """Try each order, each choice of what happened of the open ones, each revision for those."""
    must = [one for one in operations if not one.is_open]
    open_ones = [one for one in operations if one.is_open]
    revisions = {one.rev for one in operations} | {one.have for one in operations}
    revisions |= {one.expect for one in operations}
    candidates = range(1, max(rev or 0 for rev in revisions) + len(open_ones) + 1)
    for count in range(len(open_ones) + 1):
        for happened in itertools.combinations(open_ones, count):
            for order in itertools.permutations([*must, *happened]):
                if _keeps_to_time(order) and _some_revisions_do(order, candidates):
                    return True
    return False


def _keeps_to_time(order: Sequence[Operation]) -> bool:
    for index, one in enumerate(order):
        for earlier in order[:index]:
            if not one.is_open and one.end is not None and one.end < earlier.begin:
                return False
    return True


def _some_revisions_do(order: Sequence[Operation], candidates: Sequence[int]) -> bool:
    """Play the order; an open write may give any revision above all before."""
    states: set[tuple[int, object, int]] = {(0, None, 0)}
    for one in order:
        states = {after for state in states for after in _play(one, *state, candidates)}
    return bool(states)


def _play(
    one: Operation, rev: int, value: object, top: int, candidates: Sequence[int]
) -> list[tuple[int, object, int]]:
    same = [(rev, value, top)]
    if one.kind == "read":
        return same if one.rev == rev and one.value == value else []
    if one.outcome == "failed":
        return same if one.have == rev and one.expect != rev else []
    if one.expect is not None and one.expect != rev:
        return []
    if one.kind == "delete" and not rev:
        # Nothing is deleted; the answer names no revision or that of an earlier deletion.
        known = one.is_open or (one.deleted is False and (not one.rev or one.rev >= top))
        return [(rev, value, max(top, one.rev or 0))] if known else []
    if one.kind == "delete" and one.deleted is False:
        return []
    given_revs = candidates if one.is_open else [one.rev or 0]
    new = one.value if one.kind != "delete" else None
    return [(each if one.kind != "delete" else 0, new, each) for each in given_revs if each > top]


@st.composite
def small_histories(draw: st.DrawFn) -> list[Operation]:
    """A few overlapping operations with whatever answers; at most two are open."""
    ends: dict[str, float] = {}
    operations: list[Operation] = []
    for number in range(1, draw(st.integers(2, 5)) + 1):
        client = draw(st.sampled_from(["a", "b", "c"]))
        begin = ends.get(client, 0) + draw(st.integers(1, 6))
        ends[client] = end = begin + draw(st.integers(1, 6))
        kind: history.Kind = draw(st.sampled_from(get_args(history.Kind)))
        fields: dict[str, object] = {}
        if kind == "read":
            rev = draw(st.integers(0, 4))
            written = [one.value for one in operations if one.value and one.kind != "read"]
            value = draw(st.sampled_from([*written, number])) if rev else None
            fields = {"rev": rev, "value": value}
        else:
            if kind != "delete":
                fields["value"] = number
            if kind == "cas" or draw(st.integers(0, 3)) == 0:
                fields["expect"] = draw(st.integers(0, 4))
            open_ones = sum(one.is_open for one in operations)
            outcomes = ["ok", "ok", "failed", *(["unknown"] if open_ones < 2 else [])]
            fields["outcome"] = draw(st.sampled_from(outcomes))
            if fields["outcome"] == "ok":
                fields["rev"] = draw(st.integers(1, 5))
                if kind == "delete":
                    fields["deleted"] = draw(st.booleans())
            elif fields["outcome"] == "failed":
                fields |= {"expect": draw(st.integers(0, 4)), "error": "Conflict"}
                fields["have"] = draw(st.integers(0, 4))
        if kind == "write" and fields.get("expect") is not None:
            kind = "cas"
        fields = {"outcome": "ok", "strict": True, **fields}
        operations.append(
            Operation(
                number=number,
                client=client,
                key="k",
                kind=kind,
                begin=begin,
                end=end,
                **fields,  # type: ignore[arg-type]
            )
        )
    return operations


@settings(max_examples=400)
@given(operations=small_histories())
def test_it_says_what_trying_all_orders_says(operations: list[Operation]) -> None:
    assert verdict(operations).is_fine == can_be_ordered(operations)


# By hand ------------------------------------------------------------------------------------------


def operation(number: int, client: str, begin: float, end: float, **fields: object) -> Operation:
    fields = {"kind": "write", "outcome": "ok", "strict": True, "key": "k", **fields}
    return Operation(number=number, client=client, begin=begin, end=end, **fields)  # type: ignore[arg-type]


def test_the_window_is_as_small_as_can_be() -> None:
    operations = register_runs.run(random.Random(5), clients=7, count=2_000, open_share=0.02)
    last = max(one.end or 0 for one in operations)
    revs = [100_000, 100_001, 100_002]
    tail = [
        operation(9_001, "z", last + 1, last + 2, value=9_001, rev=revs[0]),
        operation(9_002, "c1", last + 3, last + 6, kind="cas", value=9_002, expect=revs[0]),
        operation(9_003, "z", last + 4, last + 5, kind="read", value=9_001, rev=revs[0]),
        operation(9_004, "z", last + 6, last + 8, kind="cas", value=9_004, expect=revs[0]),
    ]
    tail[1] = dataclasses.replace(tail[1], rev=revs[1])
    assert verdict([*operations, *tail[:3]]).is_fine
    tail[3] = dataclasses.replace(tail[3], rev=revs[2])
    found = verdict([*operations, *tail])
    assert found.window == (tail[1], tail[3])
    words = str(found).splitlines()
    assert re.fullmatch(r"k: 2 of \d+ cannot be ordered", words[0])
    assert words[1].endswith("c1: set 9002 if revision 100000 -> revision 100001")


def test_what_timed_out_may_take_effect_much_later_but_not_twice() -> None:
    late = [
        operation(1, "a", 1, 2, value=1, outcome="unknown"),
        operation(2, "b", 3, 4, value=2, rev=1),
        operation(3, "b", 5, 6, kind="read", value=2, rev=1),
        operation(4, "b", 7, 8, kind="read", value=1, rev=2),
    ]
    assert verdict(late).is_fine
    again = [
        *late,
        operation(5, "b", 9, 10, value=3, rev=3),
        operation(6, "b", 11, 12, kind="read", value=1, rev=4),
    ]
    assert not verdict(again).is_fine


def test_one_lost_deletion_explains_one_disappearance() -> None:
    operations = [
        operation(1, "a", 1, 2, kind="delete", outcome="unknown"),
        operation(2, "b", 3, 4, value=2, rev=1),
        operation(3, "b", 5, 6, kind="read", rev=0),
    ]
    assert verdict(operations).is_fine
    twice = [
        *operations,
        operation(4, "b", 7, 8, value=4, rev=3),
        operation(5, "b", 9, 10, kind="read", rev=0),
    ]
    assert [one.number for one in verdict(twice).window] == [2, 3, 4, 5]


def test_what_failed_for_certain_must_not_be_seen() -> None:
    failed = operation(1, "a", 1, 2, value=1, outcome="failed", error="StorageFailed")
    assert verdict([failed, operation(2, "b", 3, 4, kind="read", rev=0)]).is_fine
    seen = operation(2, "b", 3, 4, kind="read", value=1, rev=1)
    assert verdict([failed, seen]).window == (seen,)


def test_reads_of_a_servers_own_copy_are_left_out() -> None:
    write = operation(1, "a", 1, 2, value=1, rev=1)
    read = operation(2, "b", 3, 4, kind="read", rev=0)
    assert not verdict([write, read]).is_fine
    assert verdict([write, operation(2, "b", 3, 4, kind="read", rev=0, strict=False)]).is_fine


def test_more_than_eight_clients_on_a_key_are_refused() -> None:
    operations = [operation(n, f"c{n}", n, n + 1, value=n, rev=n) for n in range(1, 10)]
    with pytest.raises(linearizability.TooManyClients, match="9 clients, at most 8"):
        linearizability.check(operations)


def test_a_value_that_is_written_twice_is_refused() -> None:
    operations = [operation(n, "a", 2 * n, 2 * n + 1, value=7, rev=n) for n in (1, 2)]
    with pytest.raises(Unusable, match="written before"):
        linearizability.check(operations)


def test_giving_up_counts_as_a_failure() -> None:
    operations = register_runs.run(random.Random(1), count=500)
    (found,) = linearizability.check(operations, states_limit=100)
    assert (found.answer, found.is_fine) == ("unknown", False)


def test_ten_thousand_operations_of_eight_clients_take_seconds() -> None:
    operations = register_runs.run(random.Random(2), count=10_000, open_share=0.02)
    began = time.process_time()
    assert verdict(operations).is_fine
    assert time.process_time() - began < 10


def test_a_recorded_history_is_judged_the_same(tmp_path: pathlib.Path) -> None:
    operations = register_runs.run(random.Random(3), count=300)
    file = tmp_path / "history.jsonl"
    lines = [history.to_line(one) + "\n" for one in operations]
    file.write_text("".join(lines) + lines[0][:20])
    assert history.load(file) == sorted(operations, key=lambda one: one.begin)
