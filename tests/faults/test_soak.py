"""Hostile clients at a real server for some seconds; `python -m tests.faults.soak` goes on."""

from __future__ import annotations

import pathlib

import pytest

from tests.faults import soak
from tests.faults.soak import Found

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


#: What the ordinary client may have to wait here, in seconds: others use the machine and its disk.
WAIT_S = 10.0


@pytest.mark.timeout(180)
async def test_hostile_clients_disturb_nobody(tmp_path: pathlib.Path) -> None:
    calm, attacked, lines, end_bytes = await soak.run(tmp_path, 4, 1, list(soak.KINDS))
    assert soak.judge(calm, attacked, wait_s=WAIT_S) == []
    assert lines > 20
    assert len(attacked.gets) > 10
    assert end_bytes > 0


def test_a_server_that_grows_or_stalls_is_flagged(anyio_backend: str) -> None:
    calm = Found(gets=[0.001], sets=[0.001], memory_bytes=1)
    grown = Found(gets=[0.001], sets=[3.0], memory_bytes=2 + soak.GROWTH_BYTES)
    faults = soak.judge(calm, grown)
    assert [fault.split()[0] for fault in faults] == ["an", "the"]
