"""Every engine of ours does what the shipped suite asks."""

from __future__ import annotations

import pathlib

import pytest

from moat_kv.engine import base, memory, sqlite
from moat_kv.testing import engine_probe, engine_suite


class TestMemoryEngine(engine_suite.EngineSuite):
    @pytest.fixture
    def open_engine(self) -> engine_probe.OpenEngine:
        kept: list[memory.MemoryEngine] = []

        def open_engine(*, history: int = 10, tombstone_s: float = 3600.0) -> base.Engine:
            if not kept:
                kept.append(memory.MemoryEngine(history=history, tombstone_s=tombstone_s))
            return kept[0]

        return open_engine


class TestSqliteEngine(engine_suite.EngineSuite):
    @pytest.fixture
    def open_engine(self, tmp_path: pathlib.Path) -> engine_probe.OpenEngine:
        def open_engine(*, history: int = 10, tombstone_s: float = 3600.0) -> base.Engine:
            return sqlite.SqliteEngine(
                tmp_path / "log.sqlite", history=history, tombstone_s=tombstone_s
            )

        return open_engine


class TestRelaxedSqliteEngine(engine_suite.EngineSuite):
    """With answers before syncing; the saving comes often enough to take part in each test."""

    @pytest.fixture
    def open_engine(self, tmp_path: pathlib.Path) -> engine_probe.OpenEngine:
        def open_engine(*, history: int = 10, tombstone_s: float = 3600.0) -> base.Engine:
            return sqlite.SqliteEngine(
                tmp_path / "log.sqlite", sync=0.01, history=history, tombstone_s=tombstone_s
            )

        return open_engine
