"""A disk that runs full, once; `python -m tests.faults.full_disk` does it many times."""

from __future__ import annotations

import pathlib
import random

import pytest

from tests.faults import full_disk
from tests.faults.journal import Journal

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.timeout(180),
]

as_root = pytest.mark.skipif(not full_disk.can_mount(), reason="only root can mount a small disk")


@pytest.mark.parametrize(
    "mounted",
    [pytest.param(True, id="small-disk", marks=as_root), pytest.param(False, id="file-limit")],
)
async def test_without_room_nothing_is_answered_falsely_and_reads_go_on(
    tmp_path: pathlib.Path, mounted: bool
) -> None:
    journal = Journal()
    async with full_disk.server_on(tmp_path, mounted=mounted) as (server, disk):
        one = full_disk.Round(server, disk, random.Random(5))
        await one.run(journal)
    assert one.faults == []
    assert one.reads > 10
    assert journal.refused > 10
    assert ("the disk is full" if mounted else "the disk reports an error") in one.trouble
