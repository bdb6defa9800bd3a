"""What the tests of state models share: a server and who is at it; nothing is left behind."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import anyio.from_thread
import pytest

from moat_kv import blocking
from moat_kv.coord.aio import lock
from moat_kv.state import Models, State, attach, cache_files, settle
from moat_kv.testing.server import RunningServer, running_server


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in cache_files.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    # Else a release goes on in the background, which is soon so on a machine that is held up.
    monkeypatch.setattr(lock, "RELEASE_S", 30.0)
    yield
    State().reset()
    assert settle(30)


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder for files; it does not exist yet."""
    folder = tmp_path / "to" / "cache"
    monkeypatch.setenv("MOAT_KV_CACHE_BASE_PATH", str(folder))
    return folder


@pytest.fixture
def served(tmp_path: pathlib.Path) -> Iterator[RunningServer]:
    """A server in a thread of its own."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running_server(socket=tmp_path / "s")) as running,
    ):
        yield running


@pytest.fixture
def one(served: RunningServer) -> Iterator[Models]:
    """A process that shares all its models."""
    models = Models()
    with attach(served.url, within=models):
        yield models


@pytest.fixture
def other(served: RunningServer) -> Iterator[Models]:
    models = Models()
    with attach(served.url, within=models):
        yield models


@pytest.fixture
def client(served: RunningServer) -> Iterator[blocking.Client]:
    with blocking.open_client(served.url) as client:
        yield client
