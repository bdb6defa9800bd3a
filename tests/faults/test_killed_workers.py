"""A few processes killed in commits and ends; `python -m tests.faults.killed_workers` has more."""

from __future__ import annotations

import pathlib

import pytest

from tests.faults import killed_workers

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.timeout(180),
]


async def test_nothing_is_lost_or_done_twice_by_processes_that_are_killed(
    tmp_path: pathlib.Path,
) -> None:
    assert await killed_workers.run(tmp_path, 2, 2, seed=1) == []
