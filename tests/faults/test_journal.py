"""The journal of the fault commands flags what it has to flag: its negative controls."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from moat_kv.path import P, Path
from tests.faults.journal import Journal, Shown

A, B, C, D = P("a"), P("b"), P("c"), P("d")
Tree = dict[Path, Shown]


def history() -> tuple[Journal, Tree]:
    """Two answered writes of a, an answered deletion of b, a batch of c and d, an open write of a;
    and the tree that agrees with it.
    """
    journal = Journal()
    journal.acknowledged(journal.asked(A), [1])
    journal.acknowledged(journal.asked(A), [2])
    journal.acknowledged(journal.asked(B), [3])
    journal.acknowledged(journal.asked(B, deletes=True), [4])
    journal.acknowledged(journal.asked(C, D), [5, 6])
    journal.asked(A)
    return journal, {A: (2, 2), C: (5, 5), D: (6, 5)}


def test_a_tree_that_agrees_has_no_faults() -> None:
    journal, tree = history()
    assert journal.faults(tree) == []
    assert (journal.answered, journal.unanswered, journal.highest) == (5, 1, 6)


def test_what_nobody_answered_may_be_there_or_not() -> None:
    journal, tree = history()
    assert journal.faults(tree | {A: (7, 6)}) == []
    assert journal.highest == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda tree: tree.pop(A), "a: operation 2 .* is lost", id="lost"),
        pytest.param(lambda tree: tree.update({A: (1, 1)}), "a: operation 2 .* lost", id="older"),
        pytest.param(lambda tree: tree.update({A: (9, 2)}), "as revision 2, not 9", id="revision"),
        pytest.param(lambda tree: tree.update({A: (9, 4)}), "nobody sent so", id="stranger"),
        pytest.param(lambda tree: tree.update({B: (3, 3)}), "b: operation 4 .* lost", id="undead"),
        pytest.param(lambda tree: tree.pop(D), "d: operation 5 .* is lost", id="half"),
        pytest.param(lambda tree: tree.update({A: (5, 6)}), "5 was given out twice", id="twice"),
    ],
)
def test_a_tree_that_was_tampered_with_is_flagged(
    change: Callable[[Tree], object], words: str
) -> None:
    journal, tree = history()
    change(tree)
    assert re.search(words, "\n".join(journal.faults(tree)))


def test_half_of_a_batch_that_nobody_answered_is_flagged() -> None:
    journal, tree = history()
    journal.asked(C, D)
    assert "a half of a batch" in journal.faults(tree | {D: (8, 7)})[0]


def test_a_revision_that_is_answered_twice_is_flagged() -> None:
    journal, tree = history()
    journal.acknowledged(journal.asked(P("e")), [6])
    assert any("given to operations 5 and 7" in line for line in journal.faults(tree))


def test_two_winners_of_one_revision_are_flagged() -> None:
    journal, tree = history()
    for revision in (7, 8):
        journal.acknowledged(journal.asked(A, expect=2), [revision])
    found = journal.faults(tree | {A: (8, 8)})
    assert found == ["a: two operations replaced revision 2"]


def test_what_was_refused_must_not_be_there() -> None:
    journal, tree = history()
    refused = journal.asked(A)
    journal.failed(refused)
    assert "was refused, but it is there" in journal.faults(tree | {A: (7, refused.number)})[0]


def test_what_was_shown_counts_from_then_on() -> None:
    journal, tree = history()
    journal.faults(tree | {A: (7, 6)})
    assert "operation 6 (revision 7) is lost" in journal.faults(tree)[0]
