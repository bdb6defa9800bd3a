"""The packed form of paths: canonical, bounded, and cached."""

from __future__ import annotations

import unicodedata
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv import path as path_module
from moat_kv.errors import BadPath
from moat_kv.path import Path, unpack_cached
from tests.values.strategies import ATOMS, paths


@given(paths())
def test_packed_and_unpacked_is_the_same_path(path: Path) -> None:
    back = Path.unpack(path.packed)
    assert back == path
    assert [type(element) for element in back] == [type(element) for element in path]
    assert path.packed == b"".join(msgpack.packb(element) for element in path)
    assert unpack_cached(path.packed) == path
    assert unpack_cached(path.packed) is unpack_cached(bytes(bytearray(path.packed)))


@given(st.binary(max_size=40))
def test_random_bytes_are_a_canonical_path_or_refused(data: bytes) -> None:
    try:
        path = Path.unpack(data)
    except BadPath:
        return
    assert path.packed == data == Path(*path.elements).packed


@given(st.lists(ATOMS, max_size=5), st.data())
def test_a_packed_path_with_one_byte_changed_is_canonical_or_refused(
    elements: list[Any], data: st.DataObject
) -> None:
    packed = bytearray(Path(*elements).packed or b"\xa0")
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        path = Path.unpack(bytes(packed))
    except BadPath:
        return
    assert path.packed == packed


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"\xa2a", "cut short", id="truncated-str"),
        pytest.param(b"\xa1a\x92\x01", "cut short", id="truncated-tuple"),
        pytest.param(b"\xa1a\xd9\x01b", "canonical", id="long-header"),
        pytest.param(b"\xcc\x01", "canonical", id="long-int"),
        pytest.param(b"\xca\x3f\x80\x00\x00", "canonical", id="float32"),
        pytest.param(b"\xcb\x80" + bytes(7), "canonical", id="minus-zero"),
        pytest.param(msgpack.packb("e\u0301"), "canonical", id="not-normalised"),
        pytest.param(b"\xcb\x7f\xf8" + bytes(6), "NaN", id="nan"),
        pytest.param(b"\xa1\xff", "not a packed path", id="not-utf8"),
        pytest.param(b"\xa3\xed\xa0\x80", "not a packed path", id="surrogate"),
        pytest.param(b"\xc1", "not a packed path", id="not-msgpack"),
        pytest.param(b"\x81\xa1a\x01", "dict cannot", id="mapping"),
        pytest.param(b"\x81\x90\x01", "not a packed path", id="mapping-with-a-tuple-key"),
        pytest.param(b"\x81\x80\x01", "not a packed path", id="mapping-with-a-mapping-key"),
        pytest.param(b"\xd4\x05\x00", "extension type 5", id="extension"),
        pytest.param(b"\xd6\xff" + bytes(4), "Timestamp cannot", id="timestamp"),
        pytest.param(b"\xdd\xff\xff\xff\xff", "not a packed path", id="huge-claim"),
        pytest.param(b"\xa0" * 65, "at most 64 elements", id="too-many"),
        pytest.param(b"\xa0" * 1025, "at most 1024 bytes", id="too-long"),
        pytest.param(b"\x91" * 1024, "", id="deep"),
    ],
)
def test_bytes_that_are_no_canonical_path_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadPath) as caught:
        Path.unpack(data)
    assert reason in caught.value.reason
    with pytest.raises(BadPath):
        unpack_cached(data)


def test_names_of_any_length_unpack() -> None:
    for length in (0, 1, 31, 32, 255, 256, 1000):
        path = Path("x" * length, "y")
        assert Path.unpack(path.packed) == path


def test_the_cache_is_bounded_in_paths_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_module, "_CACHED_PATHS", 10)
    cache = path_module._Unpacked()
    for number in range(25):
        assert cache[Path(number).packed] == Path(number)
        assert len(cache) <= 10
    monkeypatch.setattr(path_module, "_CACHED_BYTES", 5000)
    for number in range(25):
        path = Path("x" * 1000, number)
        assert cache[path.packed] == path
        assert sum(map(len, cache)) <= 5000


def test_normal_form_is_what_unicode_says() -> None:
    hangul = unicodedata.normalize("NFD", "한글")
    assert Path(hangul).elements == ("한글",)
    # Decomposed it has more characters than a packed path has bytes; what counts is its one form.
    long_when_decomposed = "\u1f82" * 300
    assert len(unicodedata.normalize("NFD", long_when_decomposed)) == 1200
    path = Path(unicodedata.normalize("NFD", long_when_decomposed))
    assert path.elements == (long_when_decomposed,)
