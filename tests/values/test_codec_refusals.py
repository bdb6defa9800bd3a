"""Values and packed bytes that cannot be carried: refused where they are, and how deep."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv.codec import check, pack, unpack
from moat_kv.errors import BadPath, BadValue
from tests.values.strategies import VALUES, nested


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
        pytest.param({"deep": nested(65)}, "deeper than 64", "deep:0", id="deep"),
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
    for make in (nested, lambda depth: {"a": nested(depth - 1), "b": [[]] * 100}):
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
        value = nested(depth) if depth < 3 else [*filler, nested(depth - 1)]
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
