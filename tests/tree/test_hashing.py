"""The hash of a subtree says what is there, as of one revision, whatever happens meanwhile."""

from __future__ import annotations

import random
import time
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv.entry import Record
from moat_kv.path import P, Path
from moat_kv.tree import hashing
from moat_kv.tree.hashing import Snapshot, Sum
from moat_kv.tree.tree import Tree


def record(rev: int, path: Path, value: bytes | None = b"\x01", **fields: object) -> Record:
    stamp: dict[str, object] = {"at": rev / 8, "origin": "n1:00", "tick": rev, **fields}
    return Record(rev, path, value, **stamp)  # type: ignore[arg-type]


def tree_of(*records: Record) -> Tree:
    tree = Tree()
    for each in records:
        tree.apply(each)
    return tree


ROOT = Path()


def hashed(tree: Tree, path: Path = ROOT, **options: object) -> Snapshot:
    snapshot = Snapshot(tree, path, **options)  # type: ignore[arg-type]
    snapshot.begin()
    while not snapshot.is_done:
        snapshot.step()
    return snapshot


BASE = [record(1, P("a")), record(2, P("a.b")), record(3, P("a.c.d")), record(4, P("e"))]


def test_equal_trees_have_equal_hashes_in_whatever_order_they_grew() -> None:
    loaded = tree_of(*BASE)
    lived = tree_of(
        record(1, P("a")),
        record(2, P("e"), b"\x07"),
        record(3, P("gone")),
        record(4, P("gone"), None),
        *(each._replace(rev=each.rev + 10) for each in BASE),
    )
    later = tree_of(*(each._replace(rev=each.rev + 10) for each in BASE))
    assert hashed(lived).total == hashed(later).total
    assert list(lived.root.children or ()) != list(later.root.children or ())
    assert hashed(loaded).total.entries == 4


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(record(2, P("a.b"), b"\x02"), id="value"),
        pytest.param(record(5, P("a.b"), tick=2, at=2 / 8), id="revision"),
        pytest.param(record(2, P("a.b"), at=0.5), id="time"),
        pytest.param(record(2, P("a.b"), origin="n2:00"), id="origin"),
        pytest.param(record(2, P("a.b"), tick=9), id="tick"),
        pytest.param(record(2, P("a.b"), session="s"), id="session"),
        pytest.param(record(2, P("a.b"), expires_at=9.0), id="end of life"),
        pytest.param(record(2, P("a.bb")), id="path"),
        pytest.param(record(2, Path("a", b"b")), id="type of an element"),
        pytest.param(record(2, P("a.b"), None), id="deleted"),
    ],
)
def test_whatever_is_not_the_same_changes_the_hash(changed: Record) -> None:
    same, other = tree_of(*BASE), tree_of(BASE[0], changed, *BASE[2:])
    assert hashed(same).total != hashed(other).total
    assert hashed(same, P("a")).total != hashed(other, P("a")).total
    assert hashed(same, P("e")).total == hashed(other, P("e")).total


def test_deletions_and_empty_inner_nodes_do_not_count() -> None:
    tree = tree_of(*BASE, record(5, P("x.y.z")), record(6, P("x.y.z"), None))
    assert hashed(tree).total == hashed(tree_of(*BASE)).total
    assert P("x").packed not in hashed(tree).children
    tree.drop_tombstones(6)
    assert hashed(tree).total == hashed(tree_of(*BASE)).total


def test_parts_add_up_and_are_the_childrens_own_hashes() -> None:
    tree = tree_of(*BASE)
    whole, below = hashed(tree), hashed(tree, P("a"))
    assert whole.children == {P("a").packed: below.total, P("e").packed: hashed(tree, P("e")).total}
    assert below.own.entries == 1
    assert below.total == below.own + sum(below.children.values(), Sum())
    assert hashed(tree, P("nothing.there")).total == hashing.NOTHING


def test_system_data_counts_at_the_root() -> None:
    tree = tree_of(*BASE, record(5, Path(None, "session", "s")))
    assert hashed(tree).children[Path(None).packed].entries == 1


def test_many_children_are_told_in_buckets_that_can_be_opened() -> None:
    count = hashing.CHILDREN_LIMIT + 500
    tree = tree_of(*(record(n, Path("wide", n)) for n in range(1, count + 1)))
    wide = hashed(tree, P("wide"))
    assert not wide.children
    assert {len(bucket) for bucket in wide.buckets} == {1}
    bucket, part = max(wide.buckets.items())
    inside = hashed(tree, P("wide"), prefix=bucket)
    assert not inside.buckets
    assert sum(inside.children.values(), Sum()) == part
    assert all(hashing.bucket_of(name).startswith(bucket) for name in inside.children)


PATHS = [Path(*elements) for elements in [("a",), ("a", "b"), ("a", 1), ("a", True), ("c", "d")]]
WRITES = st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from([b"\x01", b"\x02", None])))


@given(before=WRITES, during=WRITES, seed=st.integers(0, 2**16), at=st.sampled_from(PATHS))
def test_it_is_of_one_revision_though_the_tree_is_written_to(
    before: list[tuple[Path, bytes | None]],
    during: list[tuple[Path, bytes | None]],
    seed: int,
    at: Path,
) -> None:
    chance = random.Random(seed)
    base = Path() if chance.random() < 0.5 else at
    records = [
        record(n, path, value, session=None if n % 3 or value is None else "s")
        for n, (path, value) in enumerate(before, 1)
    ]
    tree, still = tree_of(*records), tree_of(*records)
    snapshot = Snapshot(tree, base)
    snapshot.begin()
    for n, (path, value) in enumerate(during, len(before) + 1):
        for _ in range(chance.randrange(3)):
            step_once(snapshot)
        new = record(n, path, value)
        snapshot.before(new)
        tree.apply(new)
        if chance.random() < 0.2:
            step_once(snapshot)
    while not snapshot.is_done:
        snapshot.step()
    assert snapshot.rev == len(before)
    assert snapshot.total == hashed(still, base).total
    assert snapshot.children == hashed(still, base).children


def step_once(snapshot: Snapshot) -> None:
    """One node only."""
    if not snapshot.is_done:
        with mock.patch.object(hashing, "STEP_NODES", 1):
            snapshot.step()


def test_it_waits_for_a_revision_and_is_of_just_that() -> None:
    tree = tree_of(*BASE)
    snapshot = Snapshot(tree, Path(), rev=6)
    begun: list[int | None] = []
    snapshot.on_begin = lambda: begun.append(snapshot.rev)
    for each in (record(5, P("f")), record(6, P("g")), record(8, P("a.b"), b"\x09")):
        assert begun == []
        snapshot.before(each)
        tree.apply(each)
    assert len(begun) == 1
    while not snapshot.is_done:
        snapshot.step()
    assert snapshot.rev == 6
    assert snapshot.total == hashed(tree_of(*BASE, record(5, P("f")), record(6, P("g")))).total


def test_it_begins_as_soon_as_its_revision_is_there() -> None:
    tree = tree_of(*BASE)
    snapshot = Snapshot(tree, Path(), rev=5)
    for rev in (5, 6):
        assert has_not_begun(snapshot) == (rev == 5)
        snapshot.before(record(rev, P("f")))
        tree.apply(record(rev, P("f")))
        snapshot.applied()
    assert snapshot.rev == 5


def has_not_begun(snapshot: Snapshot) -> bool:
    return snapshot.rev is None


def test_it_need_not_wait_for_ever() -> None:
    tree = tree_of(*BASE)
    snapshot = Snapshot(tree, Path(), rev=600)
    snapshot.restart()
    assert has_not_begun(snapshot)
    assert snapshot.waits
    snapshot.begin()
    while not snapshot.is_done:
        snapshot.step()
    assert (snapshot.rev, snapshot.total) == (4, hashed(tree).total)


def test_it_begins_anew_when_nodes_were_dropped() -> None:
    tree = tree_of(*BASE)
    snapshot = Snapshot(tree, Path())
    snapshot.begin()
    gone = record(5, P("a.b"), None)
    snapshot.before(gone)
    tree.apply(gone)
    tree.drop_tombstones(5)
    snapshot.restart()
    while not snapshot.is_done:
        snapshot.step()
    assert (snapshot.rev, snapshot.total) == (5, hashed(tree).total)


def test_a_hundred_thousand_entries_are_walked_in_short_steps() -> None:
    tree = Tree()
    for n in range(1, 100_001):
        tree.apply(record(n, Path("flat", f"entry {n}") if n % 2 else Path("deep", n % 97, n)))
    snapshot = Snapshot(tree, Path())
    snapshot.begin()
    steps_s = []
    while not snapshot.is_done:
        began = time.process_time()
        snapshot.step()
        steps_s.append(time.process_time() - began)
    assert snapshot.total.entries == 100_000
    assert len(steps_s) >= 100
    assert sorted(steps_s)[len(steps_s) * 9 // 10] < 0.02
