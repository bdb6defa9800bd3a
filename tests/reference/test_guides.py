"""The Python blocks of `docs/state.md` and `docs/coord.md`, run as they stand there.

Nothing is corrected but the address of the server; what awaits at the top level runs in an event
loop. Each test says what has come of its block, and the last one that no block is left out.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import pathlib
import re
import sqlite3
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moat_kv import P, blocking, config
from moat_kv.state import State, cache_files, settle
from moat_kv.testing.server import RunningServer
from tests.coord.conftest import served as served  # the fixture

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGES = ("state.md", "coord.md")
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: The blocks that tests here run.
_run: set[tuple[str, int]] = set()


def blocks_of(page: str) -> list[str]:
    return _BLOCK.findall((DOCS / page).read_text())


def block(page: str, number: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a test as that of a block."""
    _run.add((page, number))
    return pytest.mark.parametrize("text", [blocks_of(page)[number]], ids=[f"{page} {number}"])


def run(text: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a block in a new module; what it has defined."""
    # (a module, as classes look for theirs)
    module = types.ModuleType("guide")
    module.__dict__.update(names or {})
    code = compile(text, "guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, module.__dict__))
    else:
        exec(code, module.__dict__)
    return module.__dict__


@pytest.fixture(autouse=True)
def surroundings(
    served: RunningServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A server at the default URL, an empty folder to work in, and no models."""
    monkeypatch.setenv(config.URL_VARIABLE, served.url)
    monkeypatch.chdir(tmp_path)
    for name in cache_files.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield
    State().reset()
    assert settle(30)


@block("state.md", 0)
def test_a_model_is_committed(text: str) -> None:
    model = run(text)["Thermostat"]
    assert State().checkout(model).target == 21.5


@block("state.md", 1)
def test_a_model_is_shared_by_a_plain_script(text: str, served: RunningServer) -> None:
    names = run(blocks_of("state.md")[0])
    run(text.replace("tcp://pi3:27586", served.url), names)
    with blocking.open_client(served.url) as client:
        assert client.get(P(":.moat.kv.model.Thermostat")).value.state.target == 21.5


@block("state.md", 2)
def test_a_model_is_shared_in_an_event_loop(text: str, served: RunningServer) -> None:
    run(text, run(blocks_of("state.md")[0]))
    with blocking.open_client(served.url) as client:
        assert client.get(P(":.moat.kv.model.Thermostat")).value.state.actual == 20.5


@block("coord.md", 0)
def test_a_lock_fences_a_write(text: str, served: RunningServer) -> None:
    process = run(text)["process"]
    with blocking.open_client(served.url) as client:
        assert client.get(P("pump")).value is True
    assert process.asynchronous.stopped


@block("coord.md", 1)
def test_the_same_in_an_event_loop(text: str, served: RunningServer) -> None:
    run(text)
    with blocking.open_client(served.url) as client:
        assert client.get(P("pump")).value is True


@block("coord.md", 2)
def test_updates_are_merged_and_executed_once(text: str, tmp_path: pathlib.Path) -> None:
    run(text)
    database = sqlite3.connect(tmp_path / "widgets.sqlite")
    assert database.execute("select * from clicks order by 1").fetchall() == [("w1", 2), ("w2", 1)]
    database.close()


@block("coord.md", 3)
def test_an_aggregate_is_completed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(text)
    assert capsys.readouterr().out == "2 {'me'}\n"


def test_no_block_is_left_out() -> None:
    assert _run == {(page, n) for page in PAGES for n in range(len(blocks_of(page)))}
