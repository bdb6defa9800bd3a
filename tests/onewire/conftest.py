"""What the tests of the 1-wire example share."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from moat_kv.testing.onewire import SimulatedBus, running_bus
from tests.onewire import stored


@pytest.fixture
def onewire() -> Iterator[Any]:
    """The stored package `onewire`, importable; its modules are its attributes."""
    with stored.modules():
        yield sys.modules["onewire"]


@pytest.fixture
async def bus() -> AsyncIterator[SimulatedBus]:
    """A simulated bus with the default devices."""
    async with running_bus() as running:
        yield running
