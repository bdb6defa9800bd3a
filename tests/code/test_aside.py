"""Long texts, compiled in a process of their own."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv import Client, P, errors, open_client
from moat_kv.code import CodeRoot, ModuleRoot, aside, compiling
from moat_kv.testing.server import running_server

pytestmark = pytest.mark.anyio

LIMIT_S = 30.0
LONG = f"x = [{'1, ' * (aside.LONG // 3)}]\n"


@asynccontextmanager
async def roots(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Client, CodeRoot, ModuleRoot]]:
    """Of a process that must answer: here nothing long is compiled."""
    for name in ("compile_procedure", "compile_module"):
        monkeypatch.setattr(compiling, name, only_short(getattr(compiling, name)))
    async with running_server() as server, open_client(server.url) as client:
        code = await CodeRoot.as_handler(client)
        modules = await ModuleRoot.as_handler(client)
        code.compiles_aside = modules.compiles_aside = True
        yield client, code, modules


def only_short(compiler: Any) -> Any:
    def checked(text: str, **asked: Any) -> Any:
        assert len(text) <= aside.LONG
        return compiler(text, **asked)

    return checked


async def settled(root: CodeRoot | ModuleRoot, path: str) -> errors.MoatKvError | None:
    """What is wrong with an entry, when it is compiled."""
    told = anyio.Event()
    end = root.listen(lambda _entry: told.set())
    try:
        with anyio.fail_after(LIMIT_S):
            while isinstance(problem := root[P(path)].problem, errors.Compiling):  # type: ignore[attr-defined]
                await told.wait()
                told = anyio.Event()
    finally:
        end()
    return problem  # type: ignore[no-any-return]


async def test_procedure_is_compiled_as_it_would_be_here() -> None:
    text = f"{LONG}import os.path\nreturn len(x) + y"
    asked: dict[str, Any] = {"name": "a.b", "is_async": True, "variables": ["y"], "rev": 7}
    there = await aside.compile_procedure(text, **asked)
    here = compiling.compile_procedure(text, **asked)
    assert there.code == here.code
    assert (there.is_async, there.variables) == (True, ("y",))
    assert there.imports == {"os.path"}
    assert there.source.filename == here.source.filename


async def test_module_is_compiled_as_it_would_be_here() -> None:
    asked: dict[str, Any] = {"name": "a.b", "is_package": True, "rev": 7}
    there = await aside.compile_module(f"{LONG}from . import c", **asked)
    assert there.code == compiling.compile_module(f"{LONG}from . import c", **asked).code
    assert there.imports == {"a.b", "a.b.c"}


async def test_wrong_text_is_refused_with_its_place() -> None:
    with pytest.raises(errors.BadCode, match=r"a\.b: line 2, column 5: invalid syntax"):
        await aside.compile_procedure(f"{LONG}y = = 1", name="a.b")
    with pytest.raises(errors.BadCode, match="is_async is true, false or none"):
        await aside.compile_procedure(LONG, name="a.b", is_async=3)  # type: ignore[arg-type]


async def test_text_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "LIMIT_S", 1.0)
    monkeypatch.setattr(aside, "COMMAND", (*aside.COMMAND[:1], "-c", "import time; time.sleep(60)"))
    with pytest.raises(errors.BadCode, match="not compiled after"):
        await aside.compile_procedure(LONG, name="a.b")


async def test_compiler_that_crashes_is_an_error_of_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aside, "COMMAND", (*aside.COMMAND[:1], "-c", "raise SystemExit(9)"))
    with pytest.raises(errors.BadCode, match="the compiler has ended with exit code 9"):
        await aside.compile_procedure(LONG, name="a.b")


@pytest.mark.parametrize("wrong", [5, "ab", {"a": 1}, ["a", 5], ["a", "a"]])
async def test_wrong_variables_are_refused_as_they_would_be_here(wrong: Any) -> None:
    with pytest.raises(errors.BadCode) as here:
        compiling.compile_procedure("1", name="a.b", variables=wrong)
    with pytest.raises(errors.BadCode) as there:
        await aside.compile_procedure(LONG, name="a.b", variables=wrong)
    assert str(there.value) == str(here.value)


async def test_compiler_that_crashes_before_it_has_read_is_an_error_of_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with roots(monkeypatch) as (client, code, modules):
        monkeypatch.setattr(aside, "COMMAND", (*aside.COMMAND[:1], "-c", "raise SystemExit(9)"))
        # Far more than a pipe holds.
        text = f"x = {'1' * 800_000}"
        for root, place in ((code, "proc"), (modules, "module")):
            rev = await client.set(P(f":.moat.kv.code.{place}.big"), {"code": text})
            await root.wait_rev(rev.rev)
            assert "exit code 9" in str(await settled(root, "big"))


async def test_compiler_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(aside, "AGAIN_S", 0.05)
    command, away = tmp_path / "python", tmp_path / "away"
    away.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    away.chmod(0o755)
    monkeypatch.setattr(aside, "COMMAND", (str(command), *aside.COMMAND[1:]))
    async with roots(monkeypatch) as (client, code, _):
        rev = await client.set(P(":.moat.kv.code.proc.long"), {"code": f"{LONG}return 1"})
        await code.wait_rev(rev.rev)
        assert isinstance(code.entry("long").problem, errors.Compiling)
        await anyio.sleep(0.2)
        assert isinstance(code.entry("long").problem, errors.Compiling)
        away.rename(command)
        assert await settled(code, "long") is None


async def test_compiler_that_can_never_be_started_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def not_started(question: bytes) -> Any:
        raise OSError("too many processes")

    monkeypatch.setattr(aside, "AGAIN_S", 0.05)
    monkeypatch.setattr(aside, "LIMIT_S", 0.2)
    monkeypatch.setattr(aside, "_run", not_started)
    with pytest.raises(errors.BadCode, match=r"not compiled after 0\.2 s: too many processes"):
        await aside.compile_procedure(LONG, name="a.b")


@pytest.fixture
def may_run(monkeypatch: pytest.MonkeyPatch) -> anyio.Event:
    """The other process does not begin before this is set."""
    may, run = anyio.Event(), aside._run

    async def run_then(question: bytes) -> Any:
        await may.wait()
        return await run(question)

    monkeypatch.setattr(aside, "_run", run_then)
    return may


async def test_long_procedure_can_be_called_once_it_is_compiled(
    monkeypatch: pytest.MonkeyPatch, may_run: anyio.Event
) -> None:
    async with roots(monkeypatch) as (client, code, _):
        place = P(":.moat.kv.code.proc")
        await client.set(place + P("short"), {"code": "return 2"})
        await client.set(place + P("long"), {"code": f"{LONG}return len(x)"})
        rev = await client.set(place + P("wrong"), {"code": f"{LONG}retrun 1"})
        await code.wait_rev(rev.rev)
        with pytest.raises(errors.Compiling, match="long is long and is being compiled"):
            code("long")
        assert code("short") == 2
        may_run.set()
        assert await settled(code, "long") is None
        assert code("long") == aside.LONG // 3
        problem = await settled(code, "wrong")
        assert isinstance(problem, errors.BadCode)


async def test_long_procedure_that_has_changed_meanwhile_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, may_run: anyio.Event
) -> None:
    async with roots(monkeypatch) as (client, code, _):
        path = P(":.moat.kv.code.proc.long")
        for number in range(3):
            rev = await client.set(path, {"code": f"{LONG}return {number}"})
            await code.wait_rev(rev.rev)
            assert isinstance(code.entry("long").problem, errors.Compiling)
        may_run.set()
        assert await settled(code, "long") is None
        assert code("long") == 2


async def test_long_module_is_loaded_once_it_is_compiled(
    monkeypatch: pytest.MonkeyPatch, may_run: anyio.Event
) -> None:
    async with roots(monkeypatch) as (client, code, modules):
        place = P(":.moat.kv.code.module")
        await client.set(place + P("aside_long"), {"code": LONG})
        rev = await client.set(place + P("aside_wrong"), {"code": f"{LONG}1 +"})
        await modules.wait_rev(rev.rev)
        await code.add("uses", code="import aside_long\nreturn len(aside_long.x)")
        with pytest.raises(errors.Compiling, match="aside_long is long"):
            code("uses")
        may_run.set()
        assert await settled(modules, "aside_long") is None
        assert code("uses") == aside.LONG // 3
        assert isinstance(await settled(modules, "aside_wrong"), errors.BadCode)
