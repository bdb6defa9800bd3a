"""Values and their msgpack: what survives, and what they are afterwards."""

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
from moat_kv.path import P, Path
from tests.values.strategies import VALUES, paths

AWARE = st.datetimes(timezones=st.timezones()).filter(lambda when: when.utcoffset() is not None)


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


# Packing ------------------------------------------------------------------------------------------


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
