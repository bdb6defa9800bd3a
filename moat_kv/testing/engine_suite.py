"""What every engine has to do, as tests that the author of an engine runs with pytest.

Derive a class from `EngineSuite` in a test module, give it an `open_engine` fixture, and have
`anyio_backend` run it on asyncio and trio::

    class TestMyEngine(engine_suite.EngineSuite):
        @pytest.fixture
        def open_engine(self, tmp_path):
            def open_engine(*, history=10, tombstone_s=3600.0):
                return MyEngine(tmp_path / "log", history=history, tombstone_s=tombstone_s)

            return open_engine

(`pytest.register_assert_rewrite("moat_kv.testing")` in a `conftest.py` has failures show values.)
Each call must give an engine on the same storage, which no other engine has open then; all calls of
one test ask for the same limits. Needs pytest and anyio's plugin; tests what `moat_kv.engine.base`
states and nothing else.
"""

from __future__ import annotations

import pytest

from moat_kv.testing import engine_keeping, engine_probe, engine_writing


class EngineSuite(
    engine_writing.Answering,
    engine_writing.Judging,
    engine_keeping.Keeping,
    engine_keeping.Compacting,
):
    """Every test of the contract; see the module's text for how to run it."""

    @pytest.fixture
    def open_engine(self) -> engine_probe.OpenEngine:
        raise NotImplementedError("an engine's tests give this fixture")
