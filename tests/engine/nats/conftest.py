"""A real nats-server for all tests of this folder, and a network of its own for each."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator

import pytest

from moat_kv.testing import nats
from tests.engine.nats.jumping_time import Clock

_networks = itertools.count()


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """nats-py, and so this engine, runs on asyncio only."""
    backend: str = request.param
    return backend


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of a test whose `anyio_backend` is of this clock."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture(scope="session")
def node() -> Iterator[nats.Node]:
    """A node that no test stops."""
    with nats.server(sync=False) as node:
        yield node


@pytest.fixture
def new_network() -> Callable[[], str]:
    """Names of networks that nobody has used."""
    return lambda: f"t{os.getpid()}-{next(_networks)}"


@pytest.fixture
def url(node: nats.Node, new_network: Callable[[], str]) -> str:
    """A new network on the node that all tests share."""
    return f"nats://{node.address}/{new_network()}"
