"""Values and their msgpack: what survives, what is refused and where, and how deep."""

from __future__ import annotations

import copy
import enum
import math
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path as FilePath
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv import codec
from moat_kv.codec import AttrDict, check, digits, pack, unpack
from moat_kv.errors import BadPath, BadValue
from moat_kv.path import P, Path
from tests.values.strategies import TEXTS, paths

KEYS = st.one_of(TEXTS, st.integers(-5, 5), st.booleans(), st.none(), st.binary(max_size=4))
AWARE = st.datetimes(timezones=st.timezones()).filter(lambda when: when.utcoffset() is not None)
LEAVES: st.SearchStrategy[Any] = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**80), max_value=2**80),
    st.floats(allow_nan=False),
    st.binary(max_size=12),
    st.datetimes(timezones=st.just(UTC)),
    paths(max_elements=3),
    st.builds(msgpack.ExtType, st.integers(4, 127), st.binary(max_size=20)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# Round trips ------------------------------------------------------------------------------------


@given(VALUES)
def test_a_value_comes_back(value: Any) -> None:
    packed = pack(value)
    check(packed)
    assert unpack(packed) == value
    assert pack(unpack(packed)) == packed


def test_types_are_told_apart() -> None:
    value = [True, 1, 1.0, "1", b"1", None]
    assert [type(item) for item in unpack(pack(value))] == [type(item) for item in value]


def test_nan_is_a_value() -> None:
    assert math.isnan(unpack(pack(math.nan)))


def test_tuples_and_other_sequences_become_lists() -> None:
    assert unpack(pack((1, (2, [3])))) == [1, [2, [3]]]
    assert unpack(pack(OrderedDict(a=1))) == {"a": 1}
    assert unpack(pack(bytearray(b"ab"))) == b"ab"
    assert unpack(pack(enum.IntEnum("Number", "ONE").ONE)) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "number",
    [2**64, -(2**63) - 1, 2**63, 2**64 - 1, -(2**63), 10**100, -(10**100), 2**4096],
    ids=lambda number: f"{number.bit_length()}-bits-{'minus' if number < 0 else 'plus'}",
)
def test_integers_of_any_size_come_back(number: int) -> None:
    assert unpack(pack(number)) == number
    assert unpack(pack({"a": [number]})) == {"a": [number]}


def test_a_big_integer_is_a_sign_byte_and_a_magnitude() -> None:
    assert pack(2**64) == b"\xc7\x0a\x02\x00\x01" + bytes(8)
    assert pack(-(2**64)) == b"\xc7\x0a\x02\x01\x01" + bytes(8)
    assert pack(2**64 - 1) == b"\xcf" + b"\xff" * 8


@given(paths())
def test_a_path_is_carried_as_its_packed_form(path: Path) -> None:
    assert unpack(pack({"at": path}))["at"] == path
    packed = unpack_plainly(pack(path))
    assert packed == msgpack.ExtType(3, path.packed)


def unpack_plainly(data: bytes) -> Any:
    return msgpack.unpackb(data, strict_map_key=False)


@pytest.mark.parametrize("code", [4, 127, -2, -128], ids=str)
@pytest.mark.parametrize("size", [0, 1, 3, 16, 70_000], ids=str)
def test_an_unknown_extension_survives(code: int, size: int) -> None:
    payload = os.urandom(size)
    head = b"\xc9" + size.to_bytes(4, "big") + code.to_bytes(1, "big", signed=True)
    check(head + payload)
    value = unpack(head + payload)
    assert type(value) is msgpack.ExtType
    assert (value.code, value.data) == (code, payload)
    assert unpack(pack([value])) == [value]


# Times ------------------------------------------------------------------------------------------


@given(AWARE)
def test_an_aware_datetime_comes_back_in_utc(when: datetime) -> None:
    try:
        expected = when.astimezone(UTC)
    except OverflowError:  # within a day of the calendar's ends, elsewhere than in UTC
        return
    back = unpack(pack({"when": [when]}))["when"][0]
    assert back == expected
    assert back.tzinfo is UTC


@pytest.mark.parametrize(
    "when",
    [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=timezone(timedelta(hours=-3, minutes=30))),
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
    ],
    ids=str,
)
def test_edges_of_the_calendar_come_back_to_the_microsecond(when: datetime) -> None:
    assert unpack(pack(when)) == when


@pytest.mark.parametrize(
    "timestamp",
    [
        msgpack.Timestamp(2**62, 0),
        msgpack.Timestamp(-(2**62), 0),
        msgpack.Timestamp(253402300800, 0),
        msgpack.Timestamp(1, 1),
    ],
    ids=["far-future", "far-past", "year-10000", "nanosecond"],
)
def test_what_a_datetime_cannot_hold_stays_a_timestamp(timestamp: msgpack.Timestamp) -> None:
    packed = pack({"a": [timestamp]})
    check(packed)
    assert unpack(packed) == {"a": [timestamp]}
    assert pack(unpack(packed)) == packed


def test_a_timestamp_of_any_length_and_place_is_found() -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert unpack(b"\xd6\xff" + bytes(4)) == epoch
    assert unpack(b"\xd7\xff" + bytes(8)) == epoch
    assert unpack(b"\xc7\x0c\xff" + bytes(12)) == epoch
    assert unpack(b"\xc8\x00\x04\xff" + bytes(4)) == epoch
    assert unpack(b"\xc9\x00\x00\x00\x08\xff" + bytes(8)) == epoch
    keyed = unpack(b"\x81\xd6\xff" + bytes(4) + b"\xc0")
    assert keyed == {epoch: None}
    assert type(keyed) is AttrDict


def test_bytes_that_look_like_a_timestamp_are_left_alone() -> None:
    value = {"a": [b"\xd6\xff\x00\x00\x00\x00", {"b": {"c": -1}}], "d": [1.5, ()]}
    back = unpack(pack(value))
    assert back == {"a": [b"\xd6\xff\x00\x00\x00\x00", {"b": {"c": -1}}], "d": [1.5, []]}
    assert back.a[1].b.c == -1


# What cannot be carried -------------------------------------------------------------------------


class Odd:
    def __repr__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    ("value", "reason", "where"),
    [
        pytest.param(Odd(), "Odd cannot be carried", "", id="whole"),
        pytest.param({"a": [1, {"b c": Odd()}]}, "Odd cannot", "a:1.b:_c", id="inside"),
        pytest.param({"a": {1, 2}}, "set cannot be carried", "a", id="set"),
        pytest.param([1j], "complex cannot be carried", ":0", id="complex"),
        pytest.param({"t": datetime(2024, 1, 1)}, "naive datetime", "t", id="naive"),
        pytest.param({"t": datetime(2024, 1, 1).date()}, "date cannot", "t", id="date"),
        pytest.param({"s": ["a\ud800"]}, "lone surrogate", "s:0", id="surrogate"),
        pytest.param({"k": {"a\ud800": 1}}, "lone surrogate", "k", id="surrogate-in-a-key"),
        pytest.param({"k": {Odd: 1}}, "type cannot be carried", "k", id="key"),
        pytest.param({math.nan: [Odd()]}, "Odd cannot", "[nan] [0]", id="place-without-a-path"),
        pytest.param({"deep": _nested(65)}, "deeper than 64", "deep:0", id="deep"),
        pytest.param((Odd(),), "Odd cannot", ":0", id="tuple"),
    ],
)
def test_what_cannot_be_carried_is_named_with_its_place(
    value: Any, reason: str, where: str
) -> None:
    with pytest.raises(BadValue) as caught:
        pack(value)
    assert reason in caught.value.reason
    assert (caught.value.where or "").startswith(where)
    assert bool(caught.value.where) == bool(where)
    assert pack(1) == b"\x01"  # and the next value is none the worse for it


def test_a_value_inside_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    with pytest.raises(BadValue, match="deeper than 64"):
        pack(loop)


def test_values_nest_64_deep_and_no_deeper() -> None:
    for make in (_nested, lambda depth: {"a": _nested(depth - 1), "b": [[]] * 100}):
        packed = pack(make(64))
        check(packed)
        assert unpack(packed) == make(64)
        with pytest.raises(BadValue, match="deeper than 64"):
            pack(make(65))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "cut short", id="nothing"),
        pytest.param(b"\x92\x01", "cut short", id="truncated-array"),
        pytest.param(b"\xa3ab", "cut short", id="truncated-text"),
        pytest.param(b"\xdb\xff\xff\xff\xffab", "", id="huge-text"),
        pytest.param(b"\xdd\xff\xff\xff\xff", "", id="huge-array"),
        pytest.param(b"\xdf\xff\xff\xff\xff", "", id="huge-mapping"),
        pytest.param(b"\x01\x02", "more bytes", id="trailing"),
        pytest.param(b"\xc1", "not msgpack", id="unused-byte"),
        pytest.param(b"\xa1\xff", "not UTF-8", id="not-utf8"),
        pytest.param(b"\xa3\xed\xa0\x80", "not UTF-8", id="surrogate"),
        pytest.param(b"\x81\x90\x01", "mapping's key", id="array-as-a-key"),
        pytest.param(b"\x81\x80\x01", "mapping's key", id="mapping-as-a-key"),
        pytest.param(b"\xc7\x00\x02", "sign byte", id="big-int-of-nothing"),
        pytest.param(b"\xd4\x02\x02", "sign byte", id="big-int-with-a-bad-sign"),
        pytest.param(b"\xd4\x03\xc1", "a path inside", id="bad-path"),
        pytest.param(b"\xd5\x03\xcc\x01", "canonical", id="path-not-canonical"),
        pytest.param(b"\xd4\xff\x00", "", id="timestamp-of-one-byte"),
        pytest.param(b"\xd7\xff" + b"\xff" * 8, "", id="timestamp-with-bad-nanoseconds"),
        pytest.param(b"\x91" * 65 + b"\xc0", "deeper than 64", id="65-deep"),
        pytest.param(b"\x81\x01" * 65 + b"\xc0", "deeper than 64", id="65-mappings-deep"),
        pytest.param(b"\x91" * 5000 + b"\xc0", "deeper than 64", id="5000-deep"),
        pytest.param(b"\x91" * 1_000_000, "deeper than 64", id="a-million-deep"),
    ],
)
def test_malformed_bytes_are_refused_by_both(data: bytes, reason: str) -> None:
    for read in (unpack, check):
        with pytest.raises(BadValue) as caught:
            read(data)
        assert reason in caught.value.reason
        assert not isinstance(caught.value, BadPath)


@given(st.binary(max_size=60))
def test_what_check_lets_through_can_be_unpacked_and_nothing_else(data: bytes) -> None:
    try:
        check(data)
    except BadValue:
        with pytest.raises(BadValue):
            unpack(data)
    else:
        unpack(data)


@given(VALUES, st.data())
def test_a_packed_value_with_a_byte_changed_unpacks_or_is_refused(
    value: Any, data: st.DataObject
) -> None:
    packed = bytearray(pack(value))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(packed)
    try:
        check(damaged)
    except BadValue:
        with pytest.raises(BadValue):
            unpack(damaged)
    else:
        unpack(damaged)


@given(VALUES)
def test_every_shorter_prefix_is_cut_short_or_refused(value: Any) -> None:
    packed = pack(value)
    for length in range(min(len(packed), 100)):
        with pytest.raises(BadValue):
            check(packed[:length])


@pytest.mark.parametrize("limit", [0, 1, 2, 32, 64, 1000], ids=str)
def test_check_is_exact_about_the_depth_that_it_is_given(limit: int) -> None:
    filler = [b"\x90" * 200, list(range(300))]  # bytes and items that look like containers
    for depth in (limit, limit + 1):
        value = _nested(depth) if depth < 3 else [*filler, _nested(depth - 1)]
        data = msgpack.packb(value) if depth < 500 else b"\x91" * depth + b"\x01"
        if depth <= limit:
            check(data, limit)
        else:
            with pytest.raises(BadValue, match=f"deeper than {limit} "):
                check(data, limit)


def test_wide_values_are_not_deep() -> None:
    value = {f"k{number}": [[number], {}] for number in range(5000)}
    packed = pack(value)
    check(packed)
    assert unpack(packed) == value


def test_packing_in_many_threads_at_once_gives_each_its_own() -> None:
    failed: list[Any] = []

    def work(number: int) -> None:
        for turn in range(300):
            value = {"n": number, "turn": turn, "big": [2**70 + number, P("a.b") / number] * 5}
            if unpack(pack(value)) != value:
                failed.append(value)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failed


def test_packing_may_pack_again_from_inside() -> None:
    class Chatty(dict[str, Any]):
        def items(self) -> Any:
            assert pack([1, 2**70]) == pack((1, 2**70))
            return super().items()

    assert unpack(pack(["before", Chatty(a=1), "after"])) == ["before", {"a": 1}, "after"]


def test_an_error_of_the_values_own_code_passes_through() -> None:
    class Broken(dict[str, Any]):
        def items(self) -> Any:
            raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        pack([1, Broken(a=1)])
    assert unpack(pack([1, 2**70])) == [1, 2**70]


def test_a_big_values_buffer_is_let_go() -> None:
    codec._packers.clear()
    assert len(pack(bytes(2 << 20))) > 2 << 20
    assert not codec._packers
    pack(1)
    assert len(codec._packers) == 1


# Attributes -------------------------------------------------------------------------------------


def test_mappings_are_read_and_written_by_attribute() -> None:
    value = unpack(pack({"a": {"b": [{"c": 1}]}, 5: "five"}))
    assert value.a.b[0].c == 1
    assert value[5] == "five"
    value.a.d = 2
    assert value["a"]["d"] == 2
    del value.a.d
    assert "d" not in value.a
    for absent in ("b", "__wrapped__"):
        with pytest.raises(AttributeError, match=absent):
            getattr(value, absent)
    with pytest.raises(AttributeError, match="b"):
        del value.b


def test_an_attr_dict_is_a_dict_in_all_else() -> None:
    value = AttrDict(a=1, items=2)
    assert value == {"a": 1, "items": 2}
    assert list(value.items()) == [("a", 1), ("items", 2)]
    assert value["items"] == 2
    for twin in (value.copy(), copy.copy(value), copy.deepcopy(value)):
        assert type(twin) is AttrDict
        assert twin == value
        assert twin is not value
    assert pack(value) == pack(dict(value))


# The rest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "places", "expected"),
    [
        (0, 6, 0),
        (0.0, 6, 0.0),
        (21.23456789, 6, 21.2346),
        (-21.23456789, 3, -21.2),
        (123456789, 6, 123457000),
        (0.000123456789, 3, 0.000123),
        (1000.0004, 6, 1000.0),
        (999999.5, 6, 1000000.0),
        (1e300, 2, 1e300),
        (5e-324, 6, 5e-324),
        (10**400 + 1, 2, 10**400),
        (math.inf, 6, math.inf),
        (-math.inf, 6, -math.inf),
        (3.7, 1, 4.0),
    ],
    ids=str,
)
def test_digits_are_significant_ones(number: float, places: int, expected: float) -> None:
    rounded = digits(number, places)
    assert rounded == expected
    assert type(rounded) is type(number)


def test_digits_leaves_nan_and_refuses_none_of_them() -> None:
    assert math.isnan(digits(math.nan))
    with pytest.raises(ValueError, match="at least one"):
        digits(1.5, 0)
    assert digits(1.23456789) == 1.23457


def test_the_pure_python_fallback_is_refused_at_import() -> None:
    root = FilePath(codec.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", "import moat_kv.codec"],
        env={**os.environ, "MSGPACK_PUREPYTHON": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert "ImportError: msgpack runs on its pure-Python fallback" in done.stderr
