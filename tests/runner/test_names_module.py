"""The types of the names that scripts are given; `mypy` over this file is half of the test."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, assert_type

import pytest

from moat_kv import Client, Path
from moat_kv_runner import InfoQueue, execution, feeds, messages, names, readiness

if TYPE_CHECKING:
    from moat_kv_runner.names import _P, _client, _cls, _digits, _info, _log, _Path, _self

    class Temperature(_cls.ChangeMsg):
        """As scripts tell their sources apart."""

    async def script() -> float:
        """What is checked of a script."""
        assert_type(_client, Client)
        assert_type(_info, InfoQueue)
        assert_type(_P("a.b"), Path)
        watcher = await _self.watch(_P("home"), cls=Temperature, max_depth=-1)
        assert_type(watcher, feeds.Watcher)
        timer = await _self.timer(60)
        await timer.run(5)
        _log.info("%s", _Path("a", 1))
        async for msg in _info:
            if isinstance(msg, Temperature) and "value" in msg:
                assert_type(msg.path, Path)
            elif isinstance(msg, _cls.CompleteState | _cls.ReadyMsg):
                return _digits(1.5, digits=3)
        return 0.0


def test_names_are_those_that_scripts_are_given() -> None:
    assert sorted(names.__all__) == sorted(readiness.INJECTED + readiness.INJECTED_ASYNC)
    given = execution.common_names(Path("a"), {})
    assert set(given) | {"_client", "_info", "_self"} == set(names.__all__)
    shown = {name for name in vars(names._cls) if not name.startswith("_")}
    assert shown == set(given["_cls"])
    assert {cls.__name__ for cls in messages.SCRIPT_CLASSES} < shown


def test_names_have_no_values() -> None:
    with pytest.raises(ImportError):
        from moat_kv_runner.names import _self  # noqa: F401


def test_stub_names_all_of_them() -> None:
    from moat_kv_cli import stubs

    assert sorted(stubs._NAMES) == sorted(names.__all__)
    compile(stubs.text(), stubs.FILE, "exec")
    assert pathlib.Path(stubs.FILE).suffix == ".pyi"
