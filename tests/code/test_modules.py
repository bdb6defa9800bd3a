"""Stored modules, imported with plain import statements."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from moat_kv import Client, P, errors, open_client
from moat_kv.code import CodeRoot, ModuleRoot, importing, requires
from moat_kv.testing.server import running_server

pytestmark = pytest.mark.anyio

needs = requires.parse


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    before = list(sys.meta_path)
    yield
    assert sys.meta_path == before
    assert importing.loaded() == []


@asynccontextmanager
async def module_root() -> AsyncIterator[tuple[Client, ModuleRoot]]:
    async with running_server() as server, open_client(server.url) as client:
        yield client, await ModuleRoot.as_handler(client)


def imported(name: str) -> Any:
    return importlib.import_module(name)


async def seen(client: Client, root: ModuleRoot, path: str, value: Any) -> None:
    """Store a raw value, and wait until the mirror shows it."""
    result = await client.set(root.base + P(path), value)
    await root.wait_rev(result.rev)


async def add(root: ModuleRoot, path: str, code: str, **options: Any) -> None:
    await root.add(P(path), code=code, **options)


async def test_stored_module_is_imported() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_a", "import math\nx = math.floor(3.5)\ndef f(): return x")
        module = imported("stored_a")
        assert module.f() == 3
        assert imported("stored_a") is module
    with pytest.raises(ImportError):
        imported("stored_a")


async def test_nodes_without_code_are_packages() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_p.q.m", "from . import n\nfrom ..top import y\nx = n.x + y")
        await add(root, "stored_p.q.n", "x = 1")
        await add(root, "stored_p.top", "y = 10")
        assert imported("stored_p.q.m").x == 11
        assert imported("stored_p").__path__ == []


async def test_node_with_code_and_children_is_a_package_with_that_init() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_p", "from .m import x\ny = x + 1")
        await add(root, "stored_p.m", "x = 1")
        assert imported("stored_p").y == 2


async def test_installed_packages_are_never_shadowed() -> None:
    async with module_root() as (_client, root):
        await add(root, "colorsys", "mine = True")
        await add(root, "email.mine", "x = 1")
        sys.modules.pop("colorsys", None)
        assert not hasattr(imported("colorsys"), "mine")
        with pytest.raises(ModuleNotFoundError):
            imported("email.mine")
        with pytest.raises(errors.MissingModule, match="an installed module has that name"):
            root.load(needs(["colorsys"]), needed_by="test")


async def test_installed_package_is_shadowed_if_override_says_so() -> None:
    installed = sys.modules.pop("colorsys", None)
    try:
        async with module_root() as (_client, root):
            await add(root, "colorsys", "mine = True", override=True)
            assert imported("colorsys").mine
        assert not hasattr(imported("colorsys"), "mine")
    finally:
        if installed is not None:
            sys.modules["colorsys"] = installed


async def test_modules_load_in_order_on_the_first_import_only() -> None:
    async with module_root() as (_client, root):
        code = "import builtins\nbuiltins.__dict__.setdefault('_order', []).append(__name__)"
        await add(root, "stored_a", code, requires=["stored_b", P("stored_c")])
        await add(root, "stored_b", code, requires=["stored_c"])
        await add(root, "stored_c", code)
        import builtins

        try:
            root.load(needs(["stored_a"]), needed_by="test")
            root.load(needs(["stored_a"]), needed_by="test")
            assert builtins.__dict__["_order"] == ["stored_c", "stored_b", "stored_a"]
        finally:
            builtins.__dict__.pop("_order", None)


async def test_cycle_is_refused_by_name() -> None:
    async with module_root() as (client, root):
        await add(root, "stored_a", "", requires=["stored_b"])
        await add(root, "stored_b", "", requires=["stored_c"])
        with pytest.raises(
            errors.CyclicModules, match="stored_c -> stored_a -> stored_b -> stored_c"
        ):
            await add(root, "stored_c", "", requires=["stored_a"])
        assert root.stored("stored_c") is None
        await seen(client, root, "stored_c", {"code": "", "requires": ["stored_a"]})
        with pytest.raises(
            errors.CyclicModules, match="stored_a -> stored_b -> stored_c -> stored_a"
        ):
            root.load(needs(["stored_a"]), needed_by="test")


async def test_missing_module_is_named() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_a", "", requires=["stored_z"])
        with pytest.raises(errors.MissingModule, match="stored_z, needed by stored_a"):
            root.load(needs(["stored_a"]), needed_by="test")
        await add(root, "stored_z", "")
        root.load(needs(["stored_a"]), needed_by="test")


async def test_missing_package_is_named() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_a", "", requires=["py:anyio>=400"])
        with pytest.raises(errors.MissingModule, match=r"py:anyio>=400, needed by stored_a"):
            root.load(needs(["stored_a"]), needed_by="test")


async def test_module_that_does_not_compile_is_refused() -> None:
    async with module_root() as (client, root):
        with pytest.raises(errors.BadCode, match="stored_a: line 2"):
            await add(root, "stored_a", "x = 1\ny = (")
        await seen(client, root, "stored_a", {"code": "x = 1\ny = ("})
        with pytest.raises(errors.BadCode, match="stored_a: line 2"):
            root.order(needs(["stored_a"]), needed_by="test")
        assert isinstance(root["stored_a"].problem, errors.BadCode)  # type: ignore[attr-defined]
        with pytest.raises(errors.BadCode):
            imported("stored_a")


@pytest.mark.parametrize("path", ["a:1", "not-a-name.b", "class", ":"])
async def test_path_must_be_identifiers(path: str) -> None:
    async with module_root() as (_client, root):
        with pytest.raises(errors.BadValue, match="cannot be a module"):
            await add(root, path, "")


async def test_changed_module_is_loaded_anew_with_what_needs_it() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_a", "import stored_b\nx = stored_b.x")
        await add(root, "stored_b", "from stored_c import x", requires=["stored_c"])
        await add(root, "stored_c", "x = 1")
        await add(root, "stored_d", "x = object()")
        assert imported("stored_a").x == 1
        other = imported("stored_d").x
        await add(root, "stored_c", "x = 2")
        assert imported("stored_a").x == 2
        assert imported("stored_d").x is other, "what does not need it stays"


async def test_changed_submodule_is_seen_through_its_parent() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_p.m", "x = 1")
        await add(root, "stored_p.n", "from stored_p import m\nx = m.x")
        assert imported("stored_p.n").x == 1
        await add(root, "stored_p.m", "x = 2")
        assert imported("stored_p.n").x == 2


async def test_module_that_becomes_a_package_is_loaded_anew() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_p", "x = 1")
        assert imported("stored_p").x == 1
        await add(root, "stored_p.m", "y = 2")
        assert imported("stored_p.m").y == 2
        await root.remove(P("stored_p.m"))
        await add(root, "stored_q", "")
        with pytest.raises(ImportError):
            imported("stored_p.m")


async def test_signature_changes_only_with_what_is_needed() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_a", "def f():\n    from stored_p import m")
        await add(root, "stored_p.m", "x = 1", requires=["stored_b"])
        await add(root, "stored_b", "")
        await add(root, "stored_z", "")
        before = root.signature(["stored_a", "os", "missing"])
        assert {name for name, _meaning in before} == {
            "stored_a",
            "stored_p",
            "stored_p.m",
            "stored_b",
        }
        await add(root, "stored_z", "x = 1")
        assert root.signature(["stored_a"]) == before
        await add(root, "stored_b", "x = 1")
        assert root.signature(["stored_a"]) != before


async def test_signature_and_what_is_loaded_stay_when_only_the_words_for_people_change() -> None:
    async with module_root() as (client, root):
        await seen(client, root, "stored_a", {"code": "x = []"})
        loaded, before = imported("stored_a"), root.signature(["stored_a"])
        await seen(client, root, "stored_a", {"code": "x = []", "info": "a", "version": 2})
        assert root.signature(["stored_a"]) == before
        assert imported("stored_a") is loaded
        await seen(client, root, "stored_a", {"code": "x = [1]", "info": "a", "version": 2})
        assert root.signature(["stored_a"]) != before
        assert imported("stored_a").x == [1]
        await root.remove(P("stored_a"))
        assert root.signature(["stored_a"]) == ()
        with pytest.raises(ImportError):
            imported("stored_a")
        await seen(client, root, "stored_a", {"code": "x = [1]"})
        assert imported("stored_a").x == [1]


async def test_modules_that_import_each_other_do_not_hang_the_search() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_a", "def f():\n    import stored_b")
        await add(root, "stored_b", "def f():\n    import stored_a")
        assert root.closure(["stored_a"]) == {"stored_a", "stored_b"}


async def test_traceback_shows_the_stored_line() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_a", "def f():\n    raise ValueError('x')  # here")
        with pytest.raises(ValueError, match="x") as caught:
            imported("stored_a").f()
        shown = "".join(traceback.format_exception(caught.value))
        assert "<module stored_a #" in shown
        assert "raise ValueError('x')  # here" in shown


async def test_failing_module_is_not_left_half_loaded() -> None:
    async with module_root() as (_client, root):
        await add(root, "stored_a", "raise KeyError('nope')")
        with pytest.raises(KeyError):
            imported("stored_a")
        assert "stored_a" not in sys.modules


async def test_procedures_load_what_they_require() -> None:
    async with module_root() as (client, root):
        cr = await CodeRoot.as_handler(client)
        await add(root, "stored_a", "x = 5")
        await cr.add("uses", code="import stored_a\nreturn stored_a.x", requires=["stored_a"])
        assert cr("uses") == 5
        await add(root, "stored_a", "x = 6")
        assert cr("uses") == 6
        await root.remove(P("stored_a"))
        await cr.add("now", code="return 1")
        with pytest.raises(errors.MissingModule, match="stored_a, needed by uses"):
            cr("uses")


async def test_two_clients_share_the_modules_of_one_process() -> None:
    async with module_root() as (client, root):
        await add(root, "stored_a", "x = 1")
        async with open_client(client.server.url) as other:
            theirs = await ModuleRoot.as_handler(other)
            assert imported("stored_a").x == 1
            await add(root, "stored_a", "x = 2")
            assert imported("stored_a").x == 2
            await theirs.wait_rev(root["stored_a"].rev)
            assert imported("stored_a").x == 2
        assert imported("stored_a").x == 2


async def test_listeners_are_told_of_changes() -> None:
    async with module_root() as (client, root):
        told: list[str] = []
        unlisten = root.listen(lambda entry: told.append(entry.dotted))
        await seen(client, root, "stored_a", {"code": ""})
        unlisten()
        await seen(client, root, "stored_b", {"code": ""})
        assert told == ["stored_a"]


async def test_handler_is_shared() -> None:
    async with module_root() as (client, root):
        assert await ModuleRoot.as_handler(client) is root
