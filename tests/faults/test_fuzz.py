"""Bytes of any kind, by chance; `python -m tests.faults.fuzz` is guided by coverage."""

from __future__ import annotations

import random
from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import strategies

from moat_kv.proto import frames
from moat_kv.server.connection import Connection
from tests.faults import fuzz_target


@pytest.fixture(scope="module")
def target() -> Iterator[fuzz_target.Target]:
    made = fuzz_target.Target()
    yield made
    made.close()


@hypothesis.settings(max_examples=300, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(data=strategies.binary(max_size=600))
def test_any_bytes_get_proper_answers(target: fuzz_target.Target, data: bytes) -> None:
    target.feed(data)


def test_many_requests_of_all_kinds_get_proper_answers(target: fuzz_target.Target) -> None:
    chance = random.Random(11)
    for _ in range(1_500):
        target.feed(chance.randbytes(chance.randrange(400)))


def test_a_handler_that_fails_is_a_finding(
    target: fuzz_target.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handle(self: Connection, frame: bytes | frames.Oversized) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Connection, "_handle", handle)
    with pytest.raises(fuzz_target.Finding):
        target.feed(b"\x01\x05hello")
