"""What hypothesis draws paths and values from, for the tests beside this file."""

from __future__ import annotations

import math
from datetime import UTC
from typing import Any

import msgpack
from hypothesis import assume
from hypothesis import strategies as st

from moat_kv.errors import BadPath
from moat_kv.path import Path

#: Characters that the text form treats in some special way come up often.
TEXTS = st.one_of(
    st.text(alphabet=":._ ,()[]'\"\\-+xbvystfne019a", max_size=12),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12),
)
ATOMS: st.SearchStrategy[Any] = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**63), max_value=2**64 - 1),
    st.integers(min_value=-3, max_value=3),
    st.floats(allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf, 5e-324, 1e16]),
    st.binary(max_size=12),
    st.text(alphabet=":._ '\"\\ab", max_size=8).map(lambda text: text.encode()),
)
ELEMENTS: st.SearchStrategy[Any] = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=6,
)


@st.composite
def paths(draw: st.DrawFn, max_elements: int = 8) -> Path:
    """Any path whose packed form is within the limit."""
    elements = draw(st.lists(ELEMENTS, max_size=max_elements))
    try:
        return Path(*elements)
    except BadPath as error:
        assume("packed bytes" not in error.reason)
        raise


KEYS = st.one_of(TEXTS, st.integers(-5, 5), st.booleans(), st.none(), st.binary(max_size=4))
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


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value
