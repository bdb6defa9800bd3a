"""Fixtures that every test may use; pytest loads this file by itself."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run a test marked `anyio` once on each event loop that users may choose."""
    backend: str = request.param
    return backend
