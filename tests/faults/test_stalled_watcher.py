"""One stalled watcher, in short; `python -m tests.faults.stalled_watcher` measures it."""

from __future__ import annotations

import pathlib
import random

import pytest

from tests.faults import stalled_watcher
from tests.faults.serving import served

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.timeout(180),
]


#: Half of all takes less than this, in seconds, also where others use the machine.
BUSY_S = 0.5


async def test_a_stalled_watcher_delays_nobody_and_its_memory_is_bounded(
    tmp_path: pathlib.Path,
) -> None:
    async with served(tmp_path) as server:
        found = await stalled_watcher.one_round(
            server, watchers=30, changes=30, blocks=2, chance=random.Random(1)
        )
    # A server that waited for it would never have come to an end; this leaves room for a machine
    # that was busy with something else in one half of the time.
    assert max(found.ratios) < 5 or max(found.held.medians) < BUSY_S
    assert found.growth_bytes < stalled_watcher.GROWTH_BYTES
