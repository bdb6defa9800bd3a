"""Faults between a client and its server, once each; `tests.faults.client_faults` goes on."""

from __future__ import annotations

import pathlib

import pytest

from tests.faults import client_faults
from tests.faults.serving import served

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.mark.parametrize("scene", client_faults.SCENES)
async def test_clients_live_through_what_happens_to_servers_and_to_them(
    tmp_path: pathlib.Path, scene: str, anyio_backend: str
) -> None:
    async with served(tmp_path) as server:
        went_well, line = await client_faults.play(server, scene)
    assert went_well, line
