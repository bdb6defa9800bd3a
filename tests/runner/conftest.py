"""Fixtures of the runner's tests."""

from __future__ import annotations

import pytest

from moat_kv_runner import node_facts
from tests.runner import bench


@pytest.fixture(autouse=True)
def steady_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """How busy this machine is moves no job; a test that is about load sets its own."""
    monkeypatch.setattr(node_facts, "LOOK_S", 3600.0)


@pytest.fixture(params=["inline", "process"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test's scripts in the runner's own process, then each in a child."""
    where: str = request.param
    monkeypatch.setattr(bench, "ISOLATE", where)
    return where
