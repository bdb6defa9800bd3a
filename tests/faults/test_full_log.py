"""A log that fills its disk, once; `python -m tests.faults.full_log` does it many times."""

from __future__ import annotations

import pathlib

import pytest

from tests.faults import full_disk, full_log

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.timeout(180),
    pytest.mark.skipif(not full_disk.can_mount(), reason="only root can mount a small disk"),
]


async def test_a_log_that_has_filled_its_disk_can_be_emptied_by_deletions(
    tmp_path: pathlib.Path,
) -> None:
    disk = full_disk.server_on(tmp_path, mounted=True, size_bytes=16 << 20)
    async with disk as (server, _):
        one = full_log.Round(server=server, padding=4_000)
        await one.run()
    assert one.faults == []
    assert one.refused > full_log.ENOUGH
    assert one.deleted > 100
    assert one.trouble.startswith("the disk is full")
