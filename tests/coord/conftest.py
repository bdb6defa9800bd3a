"""A server in a thread of its own, for what blocks; and nothing executed before a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

import anyio.from_thread
import pytest

from moat_kv.coord import unsettled
from moat_kv.coord.aio import lock
from moat_kv.testing.server import RunningServer, running_server
from tests.coord import widgets


@pytest.fixture
def served(tmp_path: FilePath) -> Iterator[RunningServer]:
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running_server(socket=tmp_path / "s")) as running,
    ):
        yield running


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    widgets.DONE.clear()
    widgets.FAIL.clear()
    # These go on in the background after a while, which is soon over on a machine that is held up;
    # tests that are about it say how soon.
    monkeypatch.setattr(lock, "RELEASE_S", 30.0)
    monkeypatch.setattr(unsettled, "FIRST_S", 300.0)
