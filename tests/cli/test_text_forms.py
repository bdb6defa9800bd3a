"""Values as JSON and as YAML: whatever the tree can hold comes back as it was."""

from __future__ import annotations

import contextlib
import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv import codec, errors, visible
from moat_kv.path import P
from moat_kv_cli import plain, yamltext

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_TIMES = st.datetimes(timezones=st.just(UTC), min_value=datetime(1, 1, 2))
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    _TEXT,
    st.binary(max_size=20),
    _TIMES,
    st.sampled_from([P("a.b:1"), P(":"), P(":.moat.x")]),
    st.builds(msgpack.ExtType, st.integers(4, 127), st.binary(max_size=5)),
    st.just(msgpack.Timestamp(10**12, 7)),
)
_KEYS = st.one_of(_TEXT, st.just("$bytes"), st.integers(), st.booleans(), st.binary(max_size=4))
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(_VALUES)
def test_any_value_survives_json(value: Any) -> None:
    stored = codec.unpack(codec.pack(value))
    text = plain.to_json(stored)
    assert "\n" not in text
    assert codec.pack(plain.from_json(text)) == codec.pack(value)


@given(_VALUES)
def test_any_value_survives_yaml(value: Any) -> None:
    stored = codec.unpack(codec.pack(value))
    assert codec.pack(yamltext.from_yaml(yamltext.to_yaml(stored))) == codec.pack(value)


@given(_VALUES)
def test_any_value_prints_in_one_line(value: Any) -> None:
    text = plain.inline(codec.unpack(codec.pack(value)))
    assert text.isprintable()


@pytest.mark.parametrize("read", [plain.from_json, yamltext.from_yaml], ids=["json", "yaml"])
@given(text=_TEXT)
def test_any_text_reads_as_a_value_or_is_refused(read: Any, text: str) -> None:
    with contextlib.suppress(errors.BadValue):
        codec.pack(read(text))


def test_nan_survives_both() -> None:
    assert math.isnan(plain.from_json(plain.to_json(math.nan)))
    assert math.isnan(yamltext.from_yaml(yamltext.to_yaml(math.nan)))


def test_json_is_strict_json() -> None:
    text = plain.to_json({"a": [math.inf, b"x", P("a.b")]})
    assert json.loads(text) == {"a": [{"$float": "inf"}, {"$bytes": "eA=="}, {"$path": "a.b"}]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param('{"$what": 1}', r"\$what means nothing here", id="unknown"),
        pytest.param('{"$bytes": "*"}', r"\$bytes", id="no base64"),
        pytest.param('{"$path": "a..b"}', r"\$path: bad path", id="no path"),
        pytest.param('{"$path": 3}', r"\$path", id="path is no text"),
        pytest.param('{"$time": "2024-01-01T00:00"}', "a time zone is missing", id="no zone"),
        pytest.param('{"$ext": [1000, ""]}', r"-128 to 127", id="no code"),
        pytest.param('{"$map": [[{"a": 1, "b": 2}, 1]]}', r"\$map", id="a key that cannot be"),
        pytest.param('{"$float": "1"}', r"\$float", id="no float"),
        pytest.param("[NaN]", "NaN is not JSON", id="NaN"),
        pytest.param("{", "not JSON: .*column", id="cut short"),
        pytest.param("[" * 100_000, "nested too deep", id="deep"),
    ],
)
def test_json_that_means_no_value_is_refused(text: str, reason: str) -> None:
    with pytest.raises(errors.BadValue, match=reason):
        plain.from_json(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("a: 2024-01-02", {"a": "2024-01-02"}, id="a date stays text"),
        pytest.param("2024-01-02 03:04:05", "2024-01-02 03:04:05", id="no zone stays text"),
        pytest.param(
            "2024-01-02T03:04:05Z", datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), id="zoned time"
        ),
        pytest.param(
            "2024-01-02 03:04:05+01:00",
            datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1))),
            id="zoned time with a blank",
        ),
        pytest.param("", None, id="empty"),
        pytest.param("!path a.b", P("a.b"), id="path"),
        pytest.param("1: [true, 0x10, .inf]", {1: [True, 16, math.inf]}, id="plain YAML"),
    ],
)
def test_yaml_that_people_write(text: str, value: Any) -> None:
    read = yamltext.from_yaml(text)
    assert read == value
    codec.pack(read)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("a: [", r"not YAML: line \d+, column \d+: ", id="cut short"),
        pytest.param("a: 1\na: 2", "not YAML: line 2, column 1: .*duplicate", id="key twice"),
        pytest.param("a: !path a..b", "line 1: bad path", id="no path"),
        pytest.param("!!python/object/apply:os.system [ls]", "not YAML: line 1", id="code"),
        pytest.param("2024-13-02T03:04:05Z", "line 1: 2024-13", id="no such time"),
        pytest.param("!ext [1]", "not YAML", id="ext"),
        pytest.param("a\tb: \x01", "not YAML", id="control character"),
        pytest.param("[" * 20_000, "nested too deep", id="deep"),
    ],
)
def test_yaml_that_means_no_value_is_refused(text: str, reason: str) -> None:
    with pytest.raises(errors.BadValue, match=reason):
        yamltext.from_yaml(text)


def test_a_script_is_a_block_in_yaml() -> None:
    assert yamltext.to_yaml({"code": "a = 1\nreturn a\n"}) == "code: |\n  a = 1\n  return a\n"


def test_controls_cannot_reach_a_terminal() -> None:
    assert plain.to_json("\x1b\x9b") == '"\\u001b\\u009b"'
    assert visible.made("a\x1b[31m\x9bb\tc\n") == "a\\x1b[31m\\x9bb\tc\n"
    assert plain.inline("a\x1bb\n") == '"a\\u001bb\\n"'
