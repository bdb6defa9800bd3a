"""Stored modules in children: asked for over a pipe, whatever the script's loop does."""

from __future__ import annotations

import sys

import pytest

from moat_kv import P
from moat_kv.code import ModuleRoot
from tests.runner.bench import bench

pytestmark = pytest.mark.anyio

KINDS = pytest.mark.parametrize("is_async", [True, None, False], ids=["async", "quick", "thread"])


@KINDS
async def test_stored_modules_are_imported_and_required_in_a_child(is_async: bool | None) -> None:
    async with bench("n1", isolate="process") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("stored_low"), code="import os\nPID = os.getpid()")
        await modules.add(P("stored_pack.inner"), code="from stored_low import PID\nX = 1")
        await modules.add(P("stored_top"), code="import stored_low as low", requires=["stored_low"])
        text = """
            import os, sys
            assert "stored_top" in sys.modules
            import stored_top, stored_pack.inner as inner
            from stored_pack import inner as again
            try:
                import not_stored_anywhere
            except ModuleNotFoundError as exc:
                missing = exc.name
            same = again is inner and inner.PID == os.getpid() == stored_top.low.PID
            return [same, missing, inner.__spec__.origin]
        """
        await b.store("user", text, is_async=is_async, requires=["stored_top"])
        await b.job(code=P("user"))
        same, missing, origin = (await b.state()).result
        assert (same, missing) == (True, "not_stored_anywhere")
        assert origin.startswith("stored, revision ")
        assert "stored_low" not in sys.modules, "nothing of it is loaded in the runner"


async def test_import_does_not_need_the_loop_of_the_child() -> None:
    """From a thread, while the loop itself waits for that thread."""
    text = """
        import threading
        found = []
        def load():
            import stored_slow
            found.append(stored_slow.X)
        thread = threading.Thread(target=load)
        thread.start()
        thread.join(30)
        return found
    """
    async with bench("n1", isolate="process") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("stored_slow"), code="X = 5")
        await b.job(text)
        assert (await b.state()).result == [5]


async def test_installed_module_is_hidden_only_by_one_that_says_so() -> None:
    async with bench("n1", isolate="process") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("colorsys"), code="X = 1")
        await modules.add(P("chunk_of_mine"), code="X = 2")
        await modules.add(P("sched"), code="X = 3", override=True)
        text = """
            import colorsys, chunk_of_mine, sched
            return hasattr(colorsys, "X"), chunk_of_mine.X, sched.X
        """
        await b.job(text)
        assert (await b.state()).result == [False, 2, 3]


async def test_changed_module_restarts_the_child_that_uses_it() -> None:
    async with bench("n1", isolate="process") as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("stored_value"), code="X = 1")
        text = """
            import anyio, stored_value
            await _client.set(_P("seen"), stored_value.X)
            await anyio.sleep_forever()
        """
        await b.job(text)
        await b.value(P("seen"), lambda seen: seen == 1)
        await modules.add(P("stored_value"), code="X = 2")
        await b.value(P("seen"), lambda seen: seen == 2)


async def test_module_that_cannot_be_compiled_says_so_where_it_is_imported() -> None:
    async with bench("n1", isolate="process") as b:
        await b.desk.set(b.places.module / "stored_bad", {"code": "X = ("})
        await b.job("import importlib\nimportlib.import_module('stored_bad')", delay=1000)
        assert "stored_bad" in ((await b.state()).reason or "")
