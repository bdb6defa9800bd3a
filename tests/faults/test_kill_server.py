"""A few kills of a real server; `python -m tests.faults.kill_server` does a hundred."""

from __future__ import annotations

import pathlib
import random

import pytest

from tests.faults import kill_server
from tests.faults.journal import Journal
from tests.faults.serving import served

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.timeout(180),
]


async def kill(folder: pathlib.Path, rounds: int, sync: str) -> tuple[Journal, kill_server.Counts]:
    """So many kills; with relaxed syncing they end when one has lost something."""
    journal, counts = Journal(), kill_server.Counts()
    chance = random.Random(3)
    async with served(folder, options=["--sync", sync]) as server:
        while counts.kills < rounds and not counts.lost:
            await kill_server.one_round(server, journal, chance, counts, relaxed=sync != "0")
    return journal, counts


async def test_a_killed_server_has_every_write_that_it_answered(tmp_path: pathlib.Path) -> None:
    journal, counts = await kill(tmp_path, 3, "0")
    assert (counts.lost, counts.wrong) == (0, 0)
    assert journal.answered > 100


async def test_relaxed_syncing_is_seen_to_lose_and_changes_the_epoch(
    tmp_path: pathlib.Path,
) -> None:
    # (A kill right after a sync loses nothing.)
    _journal, counts = await kill(tmp_path, 5, "1s")
    assert counts.lost > 0
    assert counts.wrong == 0
