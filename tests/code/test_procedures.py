"""Stored procedures, called by name from a client's own process."""

from __future__ import annotations

import inspect
import threading
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv import Client, P, Path, errors, open_client
from moat_kv.code import CodeRoot, procedures
from moat_kv.testing.server import running_server

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def code_root() -> AsyncIterator[tuple[Client, CodeRoot]]:
    async with running_server() as server, open_client(server.url) as client:
        yield client, await CodeRoot.as_handler(client)


async def test_procedure_is_called_by_text_path_or_tuple() -> None:
    async with code_root() as (client, cr):
        await cr.add("forty.two", code="return 42")
        assert cr("forty.two") == 42
        assert cr(("forty", "two")) == 42
        assert cr(P("forty.two")) == 42
        stored = await client.get(P(":.moat.kv.code.proc.forty.two"))
        assert stored.value.code == "return 42"
        assert stored.value.is_async is None


async def test_variables_come_from_the_call_before_the_default() -> None:
    async with code_root() as (_client, cr):
        await cr.add(
            P("add"),
            code="return a + b + options.c + options.d",
            variables=["a", "b"],
            default={"b": 20, "options": {"c": 300, "d": 4000}},
        )
        assert cr("add", a=1) == 4321
        assert cr("add", 1) == 4321
        assert cr("add", 1, 2, options={"c": 5}) == 4008
        with pytest.raises(errors.MissingVariable, match="missing variable a"):
            cr("add")
        with pytest.raises(TypeError, match="takes 2 arguments"):
            cr("add", 1, 2, 3)
        with pytest.raises(TypeError, match="two values for a"):
            cr("add", 1, a=1)


async def test_async_procedure_gives_an_awaitable() -> None:
    async with code_root() as (_client, cr):
        await cr.add("later", code="import anyio\nawait anyio.sleep(0)\nreturn x", is_async=True)
        waiting = cr("later", x=3)
        assert inspect.isawaitable(waiting)
        assert await waiting == 3


async def test_threaded_procedure_runs_elsewhere() -> None:
    async with code_root() as (_client, cr):
        code = "import threading\nreturn threading.get_ident()"
        await cr.add("there", code=code, is_async=False)
        await cr.add("here", code=code)
        assert await cr("there") != threading.get_ident()
        assert cr("here") == threading.get_ident()


async def test_nothing_is_injected_outside_a_runner() -> None:
    async with code_root() as (_client, cr):
        await cr.add("names", code="return [n for n in globals() if n[:2] != '__']")
        assert cr("names", x=1) == ["x"]


async def test_bad_code_is_refused_when_it_is_stored() -> None:
    async with code_root() as (client, cr):
        with pytest.raises(errors.BadCode, match=r"some.where: line 2, column 5"):
            await cr.add("some.where", code="if x:\n    =")
        with pytest.raises(errors.BadValue, match="neither a path"):
            await cr.add("some.where", code="return 1", requires=[1])  # type: ignore[list-item]
        assert "value" not in await client.get(P(":.moat.kv.code.proc.some.where"))


async def test_raw_write_that_does_not_compile_is_told_at_the_call() -> None:
    async with code_root() as (client, cr):
        result = await client.set(P(":.moat.kv.code.proc.bad"), {"code": "return ("})
        await cr.wait_rev(result.rev)
        problem = cr.entry("bad").problem
        assert isinstance(problem, errors.BadCode)
        with pytest.raises(errors.BadCode):
            cr("bad")
        await cr.add("bad", code="return 'good'")
        assert cr("bad") == "good"
        result = await client.set(P(":.moat.kv.code.proc.bad"), 12)
        await cr.wait_rev(result.rev)
        with pytest.raises(errors.BadValue, match="mapping with `code`"):
            cr("bad")


async def test_procedure_that_is_not_there_is_named() -> None:
    async with code_root() as (_client, cr):
        await cr.add("a.b", code="return 1")
        await cr.remove("a.b")
        for name in ("a.b", "a", "z"):
            with pytest.raises(errors.NotFound, match=f"no procedure {name}"):
                cr(name)


async def test_change_takes_effect_with_the_next_call() -> None:
    async with code_root() as (_client, cr):
        await cr.add("x", code="return 1")
        kept = cr.entry("x").procedure
        await cr.add("x", code="return 2")
        assert cr("x") == 2
        assert kept.bind({})() == 1


async def test_traceback_shows_the_stored_line() -> None:
    async with code_root() as (_client, cr):
        await cr.add("fails", code="a = 1\n\nraise ValueError(a)  # here\n")
        with pytest.raises(ValueError, match="1") as caught:
            cr("fails")
        shown = "".join(traceback.format_exception(caught.value))
        assert "line 3, in procedure\n    raise ValueError(a)  # here" in shown


async def test_listeners_are_told_of_changes() -> None:
    async with code_root() as (_client, cr):
        seen: list[Path] = []
        unlisten = cr.listen(lambda entry: seen.append(entry.path))
        await cr.add("a", code="return 1")
        await cr.remove("a")
        unlisten()
        await cr.add("b", code="return 1")
        assert seen == [P("a"), P("a")]


async def test_required_package_is_checked_and_stored_modules_need_their_handler() -> None:
    async with code_root() as (_client, cr):
        await cr.add("needs", code="return 1", requires=["py:anyio>=4"])
        assert cr("needs") == 1
        await cr.add("needs", code="return 1", requires=["py:anyio>=400"])
        with pytest.raises(errors.MissingModule, match=r"needed by needs.*needed is >=400"):
            cr("needs")
        await cr.add("needs", code="return 1", requires=["some.module"])
        with pytest.raises(errors.MissingModule, match="ModuleRoot"):
            cr("needs")


async def test_place_can_be_moved_for_the_whole_network() -> None:
    async with running_server() as server, open_client(server.url) as client:
        await client.set(P(":.moat.kv.config"), {"places": {"proc": "our.code"}})
        cr = await CodeRoot.as_handler(client)
        await cr.add("x", code="return 1")
        assert (await client.get(P("our.code.x"))).value.code == "return 1"


async def test_another_client_sees_the_code_at_once() -> None:
    async with code_root() as (client, cr), anyio.create_task_group() as tasks:
        url = client.server.url
        async with open_client(url) as other:
            theirs = await CodeRoot.as_handler(other)
            await cr.add("x", code="return 7")
            with anyio.fail_after(30):
                while P("x") not in theirs:
                    await anyio.sleep(0.01)
            assert theirs("x") == 7
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("layers", "result"),
    [
        ([{"a": 1}, {"a": 2}], {"a": 2}),
        ([{"a": {"b": 1, "c": 1}}, {"a": {"b": 2}}], {"a": {"b": 2, "c": 1}}),
        ([{"a": {"b": 1}}, {"a": 2}, {"a": {"c": 1}}], {"a": {"c": 1}}),
        ([], {}),
    ],
)
def test_later_layers_go_first(layers: list[Any], result: Any) -> None:
    assert procedures.merged(*layers) == result


def test_merging_leaves_the_layers_alone() -> None:
    layers: list[dict[str, Any]] = [{"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}]
    assert procedures.merged(*layers).a.b == {"c": 1, "d": 2}
    assert layers == [{"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}]


@pytest.mark.parametrize("layer", [None, 1, {1: 2}, ["a"]])
def test_variables_that_are_no_mapping_are_refused(layer: Any) -> None:
    with pytest.raises(errors.BadValue):
        procedures.merged(layer)
