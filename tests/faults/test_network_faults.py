"""One of each fault of a network; the commands beside this do more, and for longer."""

from __future__ import annotations

import pathlib

import pytest

from tests.faults import linearizable_network, nats_down, slow_network, split_network

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.timeout(120),
]


async def test_a_split_loses_nothing_and_has_one_winner(tmp_path: pathlib.Path) -> None:
    counts, verdict = await split_network.play(tmp_path, ["two"], 1, 1, 0.05)
    assert counts.wrong == []
    assert counts.refused > 0
    assert counts.contested == split_network.ENTRIES
    assert verdict.is_fine, verdict.details()
    assert verdict.found.pending > 0
    assert verdict.conflicts > 0


async def test_reads_and_plain_writes_go_on_without_nats(tmp_path: pathlib.Path) -> None:
    counts, verdict = await nats_down.play(tmp_path, 1, 3.0, 1, 0.05)
    assert counts.wrong == []
    assert counts.reads > 50
    assert counts.restarts > 0
    assert verdict.is_fine, verdict.details()
    assert verdict.found.pending > 50


async def test_a_slow_link_detaches_nobody(tmp_path: pathlib.Path) -> None:
    times, verdict = await slow_network.play(tmp_path, 1, 5.0, 1)
    assert times == 0
    assert verdict.is_fine, verdict.details()


async def test_what_is_strict_is_linearizable_and_plain_reads_are_seen_not_to_be(
    tmp_path: pathlib.Path,
) -> None:
    operations = await linearizable_network.play(tmp_path, ["split"], 1, 1)
    assert sum(one.outcome == "ok" for one in operations) > 100
    verdicts = linearizable_network.judge(operations)
    assert [str(verdict) for verdict in verdicts if not verdict.is_fine] == []
    verdicts = linearizable_network.judge(operations, plain_reads=True)
    assert any(verdict.answer == "wrong" for verdict in verdicts)
