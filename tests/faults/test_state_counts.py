"""Exact sums in shared models; `python -m tests.faults.state_counts` counts for longer."""

from __future__ import annotations

import pathlib
import random
from collections import Counter as Tally

import anyio
import anyio.to_thread
import pytest

from tests.faults import serving, state_counts

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.timeout(180),
]


async def test_processes_count_exactly_while_the_server_is_killed(tmp_path: pathlib.Path) -> None:
    async with serving.served(tmp_path) as server:

        async def kill() -> str:
            await anyio.sleep(0.3)
            return await state_counts.kills(server, 1, random.Random(1))

        outcome = await state_counts.shared("3 processes", [server.url] * 3, 60, faults=kill)
    assert outcome.is_exact, str(outcome)


async def test_eight_threads_alone_count_exactly() -> None:
    outcome = await anyio.to_thread.run_sync(state_counts.alone, 8, 5_000)
    assert outcome.is_exact, str(outcome)


async def test_a_wrong_sum_is_noticed() -> None:
    wrong = state_counts.Outcome(
        what="x", wanted=2, found=1, tally=Tally(done=2), faults="", took_s=1.0
    )
    assert not wrong.is_exact
    assert str(wrong).endswith("WRONG")
