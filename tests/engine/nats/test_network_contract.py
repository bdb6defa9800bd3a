"""A server that goes on without its network keeps the same contract while it is in touch."""

from __future__ import annotations

import pathlib

import pytest

from moat_kv import config
from moat_kv.engine import base, nats_remote, network
from moat_kv.testing import engine_probe, engine_suite


class TestNetworkEngine(engine_suite.EngineSuite):
    @pytest.fixture
    def open_engine(self, url: str, tmp_path: pathlib.Path) -> engine_probe.OpenEngine:
        def open_engine(*, history: int = 10, tombstone_s: float = 3600.0) -> base.Engine:
            access = config.NatsConfig(history=history)
            remote = nats_remote.NatsRemote(url, access=access, tombstone_s=tombstone_s)
            file = tmp_path / "copy.sqlite"
            return network.NetworkEngine(remote, file, origin="log:1", patience_s=20.0)

        return open_engine
