"""A few frozen holders; `python -m tests.faults.frozen_locks` does ten thousand locks."""

from __future__ import annotations

import pathlib

import pytest

from tests.faults import frozen_locks

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.timeout(180),
]


async def test_a_counter_is_exact_though_holders_are_frozen(tmp_path: pathlib.Path) -> None:
    assert await frozen_locks.run(tmp_path, 160, 3, fenced=True) == []


async def test_without_a_fence_a_late_write_is_seen_to_be_lost(tmp_path: pathlib.Path) -> None:
    faults = await frozen_locks.run(tmp_path, 160, 3, fenced=False)
    assert any("writes were answered" in each for each in faults)
