"""The engine on NATS does what the shipped suite asks, with a real nats-server."""

from __future__ import annotations

import pytest

from moat_kv import config
from moat_kv.engine import base, nats
from moat_kv.testing import engine_probe, engine_suite


class TestNatsEngine(engine_suite.EngineSuite):
    @pytest.fixture
    def open_engine(self, url: str) -> engine_probe.OpenEngine:
        def open_engine(*, history: int = 10, tombstone_s: float = 3600.0) -> base.Engine:
            access = config.NatsConfig(history=history)
            return nats.NatsEngine(url, access=access, tombstone_s=tombstone_s)

        return open_engine
