"""Paths as values: elements, keys, equality, order, joins."""

from __future__ import annotations

import copy
import enum
import itertools
import math
import pickle
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv.errors import BadPath
from moat_kv.path import P, PackedKey, Path, element_key, key_element
from tests.values.strategies import ELEMENTS, paths

DECOMPOSED = "e\u0301"
COMPOSED = "\u00e9"


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class OddStr(str):
    """A str that lies about what it equals."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1

    def __str__(self) -> str:
        return "a lie"


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("nobody asked for this")


# Elements ---------------------------------------------------------------------------------------


def test_true_one_and_one_point_zero_are_three_keys() -> None:
    alike: list[Any] = [True, 1, 1.0, False, 0, 0.0, None, "", b"", (), "1", b"1", (1,), (1.0,)]
    found = {Path(element): repr(element) for element in alike}
    assert len(found) == len(alike)
    assert [found[Path(element)] for element in alike] == [repr(element) for element in alike]
    for one, other in itertools.combinations(alike, 2):
        assert Path(one) != Path(other)
        assert Path("a", one, "b") != Path("a", other, "b")


def test_minus_zero_becomes_zero_inside_tuples_too() -> None:
    path = Path(-0.0, (-0.0, (1, -0.0)))
    assert path == Path(0.0, (0.0, (1, 0.0)))
    assert [math.copysign(1, x) for x in (path[0], path[1][0], path[1][1][1])] == [1, 1, 1]  # type: ignore[index,arg-type]


def test_strings_are_normalised_inside_tuples_too() -> None:
    path = Path(DECOMPOSED, (DECOMPOSED,))
    assert path.elements == (COMPOSED, (COMPOSED,))
    assert path == Path(COMPOSED, (COMPOSED,))
    assert DECOMPOSED in path
    assert element_key(DECOMPOSED) == COMPOSED


def test_lists_become_tuples() -> None:
    assert Path([1, ["a"]]).elements == ((1, ("a",)),)
    assert hash(Path([1])) == hash(Path((1,)))


def test_subclasses_become_what_they_are_at_heart() -> None:
    path = Path(Colour.RED, Number.ONE, OddStr("b"), (Number.ONE,))
    assert path.elements == ("red", 1, "b", (1,))
    assert [type(element) for element in path] == [str, int, str, tuple]
    assert type(path[3][0]) is int  # type: ignore[index]
    assert Path(OddStr("b")).keys == ("b",)


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        pytest.param("a\ud800", "lone surrogate", id="surrogate"),
        pytest.param(("a", ("\udfff",)), "lone surrogate", id="surrogate-in-tuple"),
        pytest.param(math.nan, "NaN", id="nan"),
        pytest.param((math.nan,), "NaN", id="nan-in-tuple"),
        pytest.param(2**64, "2**64-1", id="int-too-big"),
        pytest.param(-(2**63) - 1, "-2**63", id="int-too-small"),
        pytest.param(10**5000, "2**64-1", id="int-too-long-to-print"),
        pytest.param({"a": 1}, "dict cannot", id="dict"),
        pytest.param({1}, "set cannot", id="set"),
        pytest.param(1j, "complex cannot", id="complex"),
        pytest.param(bytearray(b"a"), "bytearray cannot", id="bytearray"),
        pytest.param(object(), "object cannot", id="object"),
        pytest.param(Unshowable(), "Unshowable cannot", id="without-a-repr"),
        pytest.param(Path("a"), "Path cannot", id="path"),
        pytest.param(PackedKey(b"\x01"), "PackedKey cannot", id="key"),
        pytest.param(msgpack.ExtType(5, b""), "ExtType cannot", id="extension"),
        pytest.param("x" * 1022, "1024 packed bytes", id="long-ascii"),
        pytest.param("é" * 511, "1024 packed bytes", id="long-in-bytes-only"),
        pytest.param("x" * 100_000, "1024 packed bytes", id="very-long"),
        pytest.param("é" * 100_000, "1024 packed bytes", id="very-long-not-ascii"),
        pytest.param(b"x" * 100_000, "1024 packed bytes", id="very-long-bytes"),
        pytest.param((0,) * 1022, "1024 packed bytes", id="long-tuple"),
        pytest.param([0] * 100_000, "1024 packed bytes", id="very-long-list"),
    ],
)
def test_what_cannot_be_an_element_is_refused_by_name(element: Any, reason: str) -> None:
    with pytest.raises(BadPath) as caught:
        Path("a", element)
    assert reason in caught.value.reason
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 500
    assert str(caught.value).encode("utf-8")


def test_a_list_inside_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(BadPath, match="nest 32 deep"):
        Path(loop)


def test_tuples_nest_32_deep_and_no_deeper() -> None:
    nested: Any = ()
    for _ in range(31):
        nested = (nested,)
    assert P(str(Path(nested))) == Path(nested)
    assert Path.unpack(Path(nested).packed) == Path(nested)
    with pytest.raises(BadPath, match="nest 32 deep"):
        Path((nested,))
    with pytest.raises(BadPath, match="nest 32 deep"):
        P(":" + "(" * 33 + ")" * 33)
    with pytest.raises(BadPath, match="nest 32 deep"):
        Path.unpack(b"\x91" * 32 + b"\x90")


def test_limits_are_64_elements_and_1024_packed_bytes() -> None:
    assert len(Path(*"a" * 64)) == 64
    with pytest.raises(BadPath, match="at most 64 elements"):
        Path(*"a" * 65)
    assert len(Path("x" * 1021).packed) == 1024
    assert len(Path("é" * 510, "").packed) == 1024
    assert len(Path(*["x" * 15] * 64).packed) == 1024
    with pytest.raises(BadPath, match="at most 1024 packed bytes, this one has 1025"):
        Path(*["x" * 15] * 63, "x" * 16)


def test_joins_keep_the_limits() -> None:
    assert len(Path(*"a" * 32) + Path(*"b" * 32)) == 64
    with pytest.raises(BadPath, match="at most 64 elements"):
        Path(*"a" * 64) / "b"
    # The estimate of a join is too high here; the path is still within the limit.
    halves = Path(*["x" * 15] * 32)
    assert len((halves + halves).packed) == 1024
    with pytest.raises(BadPath, match="packed bytes"):
        halves + halves[1:] + ("x" * 16,)


# Keys -------------------------------------------------------------------------------------------


def test_keys_of_plain_names_are_the_elements_themselves() -> None:
    path = Path("a", "é", "")
    assert path.keys is path.elements
    for joined in (path + path, path / "x", path % 1, path[1:], (path / 1)[:2], Path()):
        assert joined.keys is joined.elements


def test_other_keys_are_packed_in_a_type_of_their_own() -> None:
    path = Path("a", 1, b"a", None, (1, "x"))
    assert [type(key) for key in path.keys] == [str, PackedKey, PackedKey, PackedKey, PackedKey]
    assert path.keys[1] == msgpack.packb(1)
    assert path.keys == tuple(map(element_key, path))
    assert repr(path.keys[1]) == "PackedKey(b'\\x01')"


@given(ELEMENTS)
def test_an_element_comes_back_from_its_key(element: Any) -> None:
    clean = Path(element)[0]
    back = key_element(element_key(element))
    assert back == clean
    assert type(back) is type(clean)


def test_an_elements_key_is_refused_as_the_element_is() -> None:
    with pytest.raises(BadPath, match="NaN"):
        element_key(math.nan)


@given(paths(), paths())
def test_equality_and_hash_go_by_keys(one: Path, other: Path) -> None:
    assert (one == other) == (one.keys == other.keys) == (one.packed == other.packed)
    twin = Path.build(one)
    assert twin == one
    assert hash(twin) == hash(one)
    assert (one != other) == (one.keys != other.keys)
    assert one != one.elements
    assert {one: 1}[twin] == 1


# A sequence -------------------------------------------------------------------------------------


def test_a_path_is_a_sequence() -> None:
    path = Path("a", 1, None)
    assert len(path) == 3
    assert list(path) == ["a", 1, None]
    assert (path[0], path[-1]) == ("a", None)
    assert path[1:] == Path(1, None)
    assert path[::-1] == Path(None, 1, "a")
    assert path[5:] == Path()
    assert bool(path)
    assert not Path()
    with pytest.raises(IndexError):
        path[3]


def test_in_tells_types_apart() -> None:
    path = Path("a", 1)
    assert 1 in path
    assert True not in path
    assert 1.0 not in path
    assert b"a" not in path
    assert object() not in path
    assert [] not in path
    assert [] in Path(())


def test_joining_appending_and_dropping() -> None:
    path = Path("a", 1)
    plain = ("b",)
    for joined in (path + P("b"), path | P("b"), path + plain, path | list(plain), path / "b"):
        assert joined == Path("a", 1, "b")
        assert joined.packed == Path("a", 1, "b").packed
    assert path / (1, 2) == Path("a", 1, (1, 2))
    assert path + Path() is path
    assert Path() + path is path
    assert path % 0 is path
    assert path % 1 == Path("a")
    assert path % 2 == Path()


def test_bad_operands_are_refused() -> None:
    path = Path("a")
    with pytest.raises(BadPath, match="joined with"):
        path / Path("b")  # type: ignore[operator]
    with pytest.raises(BadPath, match="cannot drop 2 of 1"):
        path % 2
    with pytest.raises(BadPath, match="cannot drop -1"):
        path % -1
    with pytest.raises(TypeError):
        path + "b"  # type: ignore[operator]
    with pytest.raises(TypeError):
        path % "b"  # type: ignore[operator]
    with pytest.raises(TypeError):
        path < "b"  # type: ignore[operator] # noqa: B015
    with pytest.raises(BadPath, match="P\\(\\) reads texts"):
        Path.build("a.b")


@given(paths(), paths())
def test_joined_and_cut_paths_are_as_if_made_anew(one: Path, other: Path) -> None:
    joined = one + other
    for path in (joined, joined[: len(one)], joined[len(one) :], joined[::2]):
        anew = Path(*path.elements)
        assert path == anew
        assert hash(path) == hash(anew)
        assert path.packed == anew.packed
        assert (path.keys is path.elements) == all(type(key) is str for key in path.keys)
    assert joined[: len(one)] == one
    assert joined.startswith(one)


def test_startswith_goes_by_keys() -> None:
    assert Path("a", 1, "b").startswith(Path("a", 1))
    assert Path("a").startswith(Path())
    assert not Path("a", 1).startswith(Path("a", True))
    assert not Path("a").startswith(Path("a", 1))


def test_any_mix_of_elements_has_an_order() -> None:
    in_order: list[Any] = [
        None, False, True, -1, 0, 7, -math.inf, 0.5, math.inf, "", "a", "b", b"", b"a",
        (), (None,), (1,), (1, 2), ("a",),
    ]  # fmt: skip
    paths_in_order = [Path(), *(Path(element) for element in in_order)]
    shuffled = random.Random(5).sample(paths_in_order, len(paths_in_order))
    assert sorted(shuffled) == paths_in_order
    assert sorted([P("b"), P("a.b"), P("a"), P("a:1")]) == [P("a"), P("a:1"), P("a.b"), P("b")]


@given(st.lists(paths(max_elements=3), max_size=5))
def test_the_order_is_total(some: list[Path]) -> None:
    in_order = sorted(some)
    for earlier, later in itertools.combinations(in_order, 2):
        assert earlier <= later
        assert later >= earlier
        assert (earlier < later) == (later > earlier) == (earlier != later)


# A value ----------------------------------------------------------------------------------------


def test_a_path_cannot_be_changed() -> None:
    path = Path("a")
    for name in ("elements", "keys", "_hash", "other"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(path, name, ())
    with pytest.raises(AttributeError, match="immutable"):
        del path.elements
    assert not hasattr(path, "__dict__")


def test_copies_are_the_path_itself() -> None:
    path = Path("a", (1,))
    assert copy.copy(path) is path
    assert copy.deepcopy([path])[0] is path
    assert pickle.loads(pickle.dumps(path)) == path


def test_the_hash_is_kept() -> None:
    path = Path("a", 1)
    assert hash(path) == hash(path.keys)
    assert path._hash == hash(path.keys)
