"""Watchers, patterns and patches: pure parts of the tree."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies

from moat_kv import errors
from moat_kv.path import Element, P, Path
from moat_kv.tree import match, patch
from moat_kv.tree.watch import Watcher, WatchIndex
from tests.tree.test_tree import record


def nothing() -> None:
    """A watcher's wake for tests that look for themselves."""


def test_a_watcher_gets_what_lies_between_its_depths() -> None:
    index = WatchIndex()
    watcher = Watcher(P("a"), nothing, min_depth=1, max_depth=1)
    index.add(watcher)
    for rev, text in enumerate(("a", "a.b", "a.b.c", "b", "a:1"), 1):
        index.notify(record(rev, P(text)))
    assert [str(one.path) for one in watcher.take(10)] == ["a.b", "a:1"]


def test_only_the_newest_change_of_a_path_waits_and_comes_last() -> None:
    watcher = Watcher(P(":"), nothing)
    for rev, text in enumerate(("a", "b", "a"), 1):
        watcher.offer(record(rev, P(text)))
    assert [one.rev for one in watcher.take(10)] == [2, 3]


def test_a_watcher_over_its_limit_is_overrun_and_holds_nothing() -> None:
    watcher = Watcher(P(":"), nothing, limit=3)
    for rev in range(1, 9):
        watcher.offer(record(rev, Path(rev)))
    assert watcher.overrun
    assert not watcher.pending


def test_removing_a_watcher_leaves_the_others() -> None:
    index = WatchIndex()
    first, second = Watcher(P("a.b"), nothing), Watcher(P("a.b"), nothing)
    index.add(first)
    index.add(second)
    index.remove(first)
    index.notify(record(1, P("a.b")))
    assert not first.pending
    assert len(second.pending) == 1
    index.remove(second)
    assert index.count == 0


def test_system_data_is_told_to_nobody() -> None:
    index = WatchIndex()
    watcher = Watcher(P(":"), nothing)
    index.add(watcher)
    index.notify(record(1, Path(None, "session", "x")))
    assert not watcher.pending


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        pytest.param("a.+.c", "a.b.c", True, id="one-element"),
        pytest.param("a.+.c", "a.c", False, id="one-is-not-none"),
        pytest.param("a.#", "a", True, id="any-is-none-too"),
        pytest.param("a.#", "a.b.c", True, id="any-at-the-end"),
        pytest.param("a.#.z", "a.b.c.z", True, id="any-between"),
        pytest.param("a.#.z", "a.b.c", False, id="end-differs"),
        pytest.param("#.b.#", "a.b.c", True, id="any-twice"),
        pytest.param("+:1", "a:1", True, id="numbers"),
        pytest.param("+:1", "a:t", False, id="true-is-not-one"),
        pytest.param(":", ":", True, id="root"),
        pytest.param("#", ":", True, id="any-root"),
        pytest.param("a", ":", False, id="longer-than-path"),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert match.matches(P(pattern), P(path)) is expected


def matches_slowly(pattern: tuple[object, ...], path: tuple[object, ...]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == match.ANY:
        return any(matches_slowly(pattern[1:], path[n:]) for n in range(len(path) + 1))
    return (
        bool(path) and pattern[0] in (match.ONE, path[0]) and matches_slowly(pattern[1:], path[1:])
    )


names = strategies.sampled_from(["a", "b", 1])


@hypothesis.given(
    pattern=strategies.lists(names | strategies.sampled_from(["+", "#"]), max_size=7),
    path=strategies.lists(names, max_size=7),
)
def test_a_pattern_matches_what_its_definition_says(
    pattern: list[Element], path: list[Element]
) -> None:
    expected = matches_slowly(tuple(pattern), tuple(path))
    assert match.matches(Path(*pattern), Path(*path)) is expected


def test_a_pattern_knows_where_to_look() -> None:
    assert match.literal_prefix(P("a.b.+.c")) == P("a.b")
    assert match.depth_limit(P("a.b.+.c")) == 2
    assert match.depth_limit(P("a.#")) == -1
    assert match.literal_prefix(P("a.b")) == P("a.b")


def test_index_finds_pattern_watchers_by_their_literal_part() -> None:
    index = WatchIndex()
    watcher = Watcher(P("a"), nothing, pattern=P("a.+.c"))
    index.add(watcher)
    index.notify(record(1, P("a.b.c")))
    index.notify(record(2, P("a.b.d")))
    assert [one.rev for one in watcher.take(5)] == [1]


@pytest.mark.parametrize(
    ("op", "old", "operand", "new"),
    [
        pytest.param("add", 1, 2, 3, id="add"),
        pytest.param("add", patch.ABSENT, 2.5, 2.5, id="add-to-nothing"),
        pytest.param("append", [1], [2], [1, [2]], id="append"),
        pytest.param("append", patch.ABSENT, 1, [1], id="append-to-nothing"),
        pytest.param("union", [1, True], [1, 1.0, True], [1, True, 1.0], id="union"),
        pytest.param(
            "merge", {"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}, id="merge"
        ),
        pytest.param("merge", {"a": 1}, {"a": {"c": 2}}, {"a": {"c": 2}}, id="merge-replaces"),
    ],
)
def test_patches(op: str, old: object, operand: object, new: object) -> None:
    result = patch.patched("p", op, old, operand)
    assert result == new
    assert repr(result) == repr(new)


@pytest.mark.parametrize(
    ("op", "old", "operand", "words"),
    [
        pytest.param("add", "x", 1, "the value is a str", id="add-to-text"),
        pytest.param("add", True, 1, "the value is a bool", id="add-to-bool"),
        pytest.param("add", 1, "x", "not a number", id="add-text"),
        pytest.param("append", {}, 1, "the value is a dict", id="append-to-mapping"),
        pytest.param("union", [], 1, "not a list", id="union-number"),
        pytest.param("merge", [], {}, "the value is a list", id="merge-into-list"),
        pytest.param("twist", 1, 1, "add, append, union, merge", id="unknown"),
    ],
)
def test_patches_that_do_not_fit(op: str, old: object, operand: object, words: str) -> None:
    with pytest.raises(errors.CannotPatch, match=words):
        patch.patched("p", op, old, operand)
