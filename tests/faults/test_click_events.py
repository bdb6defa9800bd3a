"""Some events, one of four processes killed; the command `tests.faults.click_events` has more."""

from __future__ import annotations

import pathlib

import pytest

from tests.faults import click_events

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.timeout(180),
]


@pytest.mark.parametrize(
    ("events", "safe", "tasks"),
    [(20_000, False, 0), (1_200, True, 0), (4_000, True, 16)],
    ids=["fast", "safe", "safe in tasks"],
)
async def test_totals_are_exact_though_a_process_is_killed(
    tmp_path: pathlib.Path, events: int, safe: bool, tasks: int
) -> None:
    found = await click_events.run(tmp_path, events, safe=safe, tasks=tasks)
    assert click_events.judged(found, events, safe=safe, tasks=tasks) == []


async def test_a_lost_click_would_be_seen() -> None:
    found = click_events.Totals(clicks=749, impressions=100, acknowledged=125, took_s=1, left=1)
    assert len(click_events.judged(found, 1_000, safe=True)) == 3
    found = click_events.Totals(clicks=750, impressions=200, acknowledged=125, took_s=1, left=0)
    assert click_events.judged(found, 1_000, safe=False)
