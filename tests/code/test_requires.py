"""What code requires is parsed, compared and put in order."""

from __future__ import annotations

import importlib.metadata
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv import errors
from moat_kv.code import requires
from moat_kv.path import P, Path


def test_paths_and_packages_are_told_apart() -> None:
    needs = requires.parse([P("a.b"), "c.d", "py:anyio>=4,<5", "py:trio"])
    assert needs.stored == ("a.b", "c.d")
    assert [str(each) for each in needs.installed] == ["py:anyio>=4,<5", "py:trio"]


def test_nothing_is_required_by_default() -> None:
    assert requires.parse(None) == requires.Needs()


@pytest.mark.parametrize(
    "bad",
    [
        "a.b",
        [1],
        ["a..b"],
        [Path("a", 1)],
        [Path("not-an-identifier")],
        [Path("class")],
        [Path()],
        ["py:"],
        ["py:x=>1"],
        ["py:x>=one"],
        ["py:x>=1.*"],
        ["py:x~=1"],
        ["py:x 1"],
        {"a": 1},
    ],
    ids=repr,
)
def test_bad_requirement_is_refused(bad: Any) -> None:
    with pytest.raises(errors.BadValue):
        requires.parse(bad)


def test_versions_sort_as_packages_do() -> None:
    rising = [
        "0.9",
        "1.0.dev1",
        "1.0a1.dev1",
        "1.0a1",
        "1.0a2",
        "1.0b1",
        "1.0rc1",
        "1.0",
        "1.0.post1.dev1",
        "1.0.post1",
        "1.0.1",
        "1.2",
        "1.10",
        "2!0.1",
    ]
    keys = [requires.version_key(each) for each in rising]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("version", "clause", "fits"),
    [
        ("1.2", ">=1.2", True),
        ("1.2.0", "==1.2", True),
        ("1.10", ">1.9", True),
        ("1.9", ">=1.10", False),
        ("1.2.3", "==1.2.*", True),
        ("1.20", "==1.2.*", False),
        ("1.3", "!=1.2.*", True),
        ("1", "==1.0.*", True),
        ("1.4.5", "~=1.4.2", True),
        ("1.5", "~=1.4.2", False),
        ("1.4.1", "~=1.4.2", False),
        ("2.0rc1", "<2", True),
        ("1.0+local.1", "==1.0", True),
        ("1.0", "!=1.0", False),
    ],
)
def test_version_fits_clause(version: str, clause: str, fits: bool) -> None:
    (requirement,) = requires.parse([f"py:x{clause}"]).installed
    assert requires.satisfies(version, requirement.clauses[0]) is fits


def test_installed_package_is_met() -> None:
    version = importlib.metadata.version("anyio")
    (fits,) = requires.parse([f"py:anyio>=1,=={version}"]).installed
    assert requires.unmet(fits) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("py:anyio>=999", "needed is >=999"),
        ("py:no-such-package-anywhere", "package no-such-package-anywhere is not installed"),
        ("py:sqlite3>=1", "package sqlite3 is not installed"),
    ],
)
def test_unmet_package_is_named(text: str, reason: str) -> None:
    (requirement,) = requires.parse([text]).installed
    assert reason in (requires.unmet(requirement) or "")


def test_part_of_python_itself_is_met() -> None:
    (requirement,) = requires.parse(["py:sqlite3"]).installed
    assert requires.unmet(requirement) is None


def order(tree: dict[str, list[str]], *names: str) -> list[str]:
    return requires.load_order(names, tree.get, needed_by="the job")


def test_dependencies_load_first() -> None:
    tree = {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}
    assert order(tree, "a") == ["d", "b", "c", "a"]


def test_cycle_is_named() -> None:
    with pytest.raises(errors.CyclicModules, match="b -> c -> b"):
        order({"a": ["b"], "b": ["c"], "c": ["b"]}, "a")


def test_module_that_needs_itself_is_a_cycle() -> None:
    with pytest.raises(errors.CyclicModules, match="a -> a"):
        order({"a": ["a"]}, "a")


def test_missing_module_is_named_with_who_needs_it() -> None:
    with pytest.raises(errors.MissingModule, match="missing module b, needed by a"):
        order({"a": ["b"]}, "a")
    with pytest.raises(errors.MissingModule, match="missing module z, needed by the job"):
        order({}, "z")


def test_long_chains_do_not_exhaust_the_stack() -> None:
    tree = {f"m{n}": [f"m{n + 1}"] for n in range(5000)} | {"m5000": []}
    assert order(tree, "m0")[0] == "m5000"


@given(st.dictionaries(st.integers(0, 8), st.lists(st.integers(0, 8), max_size=4), max_size=9))
def test_order_has_dependencies_first_or_names_a_true_cycle(graph: dict[int, list[int]]) -> None:
    tree = {str(n): [str(m) for m in graph.get(n, [])] for n in range(9)}
    try:
        found = order(tree, *tree)
    except errors.CyclicModules as exc:
        cycle = exc.cycle.split(" -> ")
        assert cycle[0] == cycle[-1]
        assert all(b in tree[a] for a, b in itertools.pairwise(cycle))
        return
    assert sorted(found) == sorted(tree)
    for name in found:
        assert all(found.index(need) < found.index(name) for need in tree[name])
