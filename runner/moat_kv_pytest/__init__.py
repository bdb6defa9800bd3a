"""Fixtures for tests of moat-kv's scripts; pytest loads this by itself where moat-kv is installed.

`run_script` runs a script in a box: a server in memory, virtual time; see docs/testing.md. Nothing
of moat-kv is imported before a test asks for one of the fixtures: this is a package of its own so
that other tests pay nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from moat_kv_runner.testing.box import Box, BusHandle
    from moat_kv_runner.testing.script_run import ScriptRun


@pytest.fixture
def moat_backend() -> str:
    """The event loop of the scripts: `asyncio`; another fixture of this name may say `trio`."""
    return "asyncio"


@pytest.fixture
def moat_box(moat_backend: str, request: pytest.FixtureRequest) -> Iterator[Box]:
    """A server in memory, and virtual time; scripts are looked for beside the test."""
    from moat_kv_runner.testing import box

    with box.running_box(backend=moat_backend, folder=request.path.parent) as made:
        yield made


@pytest.fixture
def run_script(moat_box: Box) -> Callable[..., ScriptRun]:
    """`run_script("lamps.py", entries={...}, watts=7)` runs a script in the test's `moat_box`."""
    return moat_box.run_script


@pytest.fixture
def moat_bus(moat_box: Box) -> BusHandle:
    """A simulated 1-wire bus beside the script, at `moat_bus.host` and `moat_bus.port`."""
    return moat_box.start_bus()
