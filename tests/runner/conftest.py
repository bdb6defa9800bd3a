"""Fixtures of the runner's tests."""

from __future__ import annotations

import pytest

from tests.runner import bench


@pytest.fixture(params=["inline", "process"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test's scripts in the runner's own process, then each in a child."""
    where: str = request.param
    monkeypatch.setattr(bench, "ISOLATE", where)
    return where
