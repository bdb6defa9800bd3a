"""Fixtures and rules for all tests; pytest loads this file by itself, no test imports it."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest

# A test's time is bounded by pytest-timeout; a bound per example, or on how long examples take to
# make, would only fail on a busy machine.
# (Where CI is set, hypothesis chooses a profile of its own, without bounds and without chance.)
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
if "CI" not in os.environ:
    hypothesis.settings.load_profile("unhurried")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run a test marked `anyio` once on each event loop that users may choose."""
    backend: str = request.param
    return backend


@pytest.fixture(autouse=True)
def state_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    """None of this machine's state folders is touched; each test has an empty one."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def short_folder() -> Iterator[pathlib.Path]:
    """An empty folder with a short name: the path of a Unix socket has room for 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="moat-") as name:
        yield pathlib.Path(name)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Count and name the skipped tests in the very last line, so that none is skipped unseen."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly:
        return
    skipped = [f"{report.nodeid} ({_reason(report)})" for report in reporter.getreports("skipped")]
    reporter.write_line(f"skipped tests: {len(skipped)}" + "".join(f"; {s}" for s in skipped))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    where_and_why = report.longrepr
    text = where_and_why[2] if isinstance(where_and_why, tuple) else str(where_and_why)
    return text.removeprefix("Skipped: ")
