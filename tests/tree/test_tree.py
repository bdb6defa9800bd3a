"""The tree in memory: applying, finding, walking, forgetting."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies

from moat_kv import codec
from moat_kv.entry import Record
from moat_kv.path import Element, P, Path
from moat_kv.tree import tree as tree_module
from moat_kv.tree.tree import Tree


def record(rev: int, path: Path, value: object = 1, **more: object) -> Record:
    packed = None if value is None else codec.pack(value)
    return Record(rev, path, packed, 1.5, "n:1", rev, **more)  # type: ignore[arg-type]


def paths_below(tree: Tree, path: Path, **depths: int) -> list[str]:
    node = tree.find(path)
    assert node is not None
    walk = tree_module.walk(node, path.packed, at_root=not path, **depths)
    return [str(Path.unpack(packed)) for packed, found in walk if found.value is not None]


def test_true_one_and_one_point_zero_are_three_entries() -> None:
    tree = Tree()
    names: tuple[Element, ...] = (True, 1, 1.0, "1", b"1")
    for rev, element in enumerate(names, 1):
        tree.apply(record(rev, Path(element), repr(element)))
    assert tree.entries == 5
    values = [tree.find(Path(element)) for element in names]
    unpacked = [codec.unpack(node.value) for node in values if node and node.value]
    assert unpacked == ["True", "1", "1.0", "'1'", "b'1'"]


def test_deleting_a_value_leaves_its_children() -> None:
    tree = Tree()
    tree.apply(record(1, P("a")))
    tree.apply(record(2, P("a.b")))
    tree.apply(record(3, P("a"), None))
    assert paths_below(tree, P(":")) == ["a.b"]
    head = tree.head(P("a"))
    assert head is not None
    assert (head.rev, head.value) == (3, None)


def test_walk_gives_parents_before_children_in_the_order_of_making() -> None:
    tree = Tree()
    for rev, text in enumerate(("b", "a.x.y", "a", "a.x", "b:1"), 1):
        tree.apply(record(rev, P(text)))
    assert paths_below(tree, P(":")) == ["b", "b:1", "a", "a.x", "a.x.y"]


def test_walk_keeps_to_its_depths() -> None:
    tree = Tree()
    for rev, text in enumerate(("a", "a.b", "a.b.c", "a.b.c.d"), 1):
        tree.apply(record(rev, P(text)))
    assert paths_below(tree, P("a"), min_depth=1, max_depth=2) == ["a.b", "a.b.c"]
    assert paths_below(tree, P("a"), max_depth=0) == ["a"]


def test_walk_from_the_root_leaves_system_data_out() -> None:
    tree = Tree()
    tree.apply(record(1, Path(None, "session", "x")))
    tree.apply(record(2, P("a")))
    assert paths_below(tree, P(":")) == ["a"]


def test_walk_goes_on_while_the_tree_changes() -> None:
    tree = Tree()
    for rev in range(1, 101):
        tree.apply(record(rev, Path("a", rev)))
    walk = tree_module.walk(tree.root, b"", at_root=True)
    seen = [next(walk) for _ in range(50)]
    for rev in range(101, 200):
        tree.apply(record(rev, Path("a", rev - 100), None))
    tree.drop_tombstones(300)
    assert [Path.unpack(packed) for packed, _ in walk] == [Path("a", 100)]
    assert len(seen) == 50


def test_dropping_tombstones_removes_empty_inner_nodes_and_nothing_else() -> None:
    tree = Tree()
    tree.apply(record(1, P("a.b.c")))
    tree.apply(record(2, P("a.d")))
    tree.apply(record(3, P("a.b.c"), None))
    tree.apply(record(4, P("e"), None))
    tree.drop_tombstones(3)
    assert tree.floor == 3
    assert tree.find(P("a.b")) is None
    assert tree.find(P("a.d")) is not None
    assert tree.head(P("e")) is not None


def test_a_path_has_one_tombstone_however_often_it_is_deleted() -> None:
    tree = Tree()
    for rev in range(1, 1_001):
        tree.apply(record(rev, P("a.b"), rev if rev % 2 else None))
    tree.apply(record(1_001, P("a.c"), None))
    tree.apply(record(1_002, P("a.b"), None))
    assert tree.tombstones == 2
    tree.apply(record(1_003, P("a.c"), 1))
    assert tree.tombstones == 1
    tree.drop_tombstones(1_001)
    assert tree.tombstones == 1
    tree.drop_tombstones(1_002)
    assert tree.tombstones == 0
    assert tree.find(P("a.b")) is None
    assert paths_below(tree, P(":")) == ["a.c"]


def test_a_tombstone_that_was_written_over_is_not_dropped() -> None:
    tree = Tree()
    tree.apply(record(1, P("a"), None))
    tree.apply(record(2, P("a"), 5))
    tree.drop_tombstones(2)
    assert paths_below(tree, P(":")) == ["a"]


elements = strategies.sampled_from(["a", "b", 1, True, 1.0, None, b"a"]).filter(
    lambda element: element is not None
)
writes = strategies.lists(
    strategies.tuples(strategies.lists(elements, max_size=3), strategies.booleans()), max_size=40
)


@hypothesis.given(writes=writes, floor=strategies.integers(0, 40))
def test_the_tree_agrees_with_a_plain_mapping(
    writes: list[tuple[list[Element], bool]], floor: int
) -> None:
    tree, model = Tree(), dict[Path, int]()
    for rev, (path_elements, present) in enumerate(writes, 1):
        path = Path.build(path_elements)
        tree.apply(record(rev, path, rev if present else None))
        if present:
            model[path] = rev
        else:
            model.pop(path, None)
    tree.drop_tombstones(floor)
    walked = {
        Path.unpack(packed): codec.unpack(node.value)
        for packed, node in tree_module.walk(tree.root, b"", at_root=True)
        if node.value is not None
    }
    assert walked == model
    assert tree.entries == len(model)
