"""What a script starts and opens ends with its run: tasks, contexts, mirrors."""

from __future__ import annotations

import anyio
import pytest

from moat_kv import P
from moat_kv_runner import commands
from tests.runner.bench import LIMIT_S, bench, result_of, returned

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]


async def test_spawned_task_runs_beside_and_ends_with_the_run() -> None:
    text = """
        import anyio
        async def beside(a, *, b):
            await _info.put((a, b))
            try:
                await anyio.sleep_forever()
            finally:
                _client.task_group  # still there
                ended.append(1)
        ended = []
        task = await _self.spawn(beside, 1, b=2)
        other = await _self.spawn(beside, 3, b=4)
        seen = []
        while len(seen) < 2:
            msg = await _info.get()
            if isinstance(msg, tuple):
                seen.append(msg)
        task.cancel()
        while not ended:
            await anyio.sleep(0)
        return sorted(seen), ended
    """
    assert await result_of(text) == [[[1, 2], [3, 4]], [1, 1]]


async def test_failing_task_fails_the_run() -> None:
    async with bench("n1") as b:
        text = """
            import anyio, sys
            async def fails():
                sys.exit(3)
            await _self.spawn(fails)
            await anyio.sleep_forever()
        """
        await b.job(text, delay=1000)
        state = await b.state()
        assert state.reason == "failed: ScriptEnded: the script called sys.exit(3)"


async def test_contexts_are_closed_last_first_when_the_run_ends() -> None:
    text = """
        import anyio
        from contextlib import asynccontextmanager, contextmanager
        log = []
        @asynccontextmanager
        async def one(name):
            log.append("+" + name)
            try:
                yield name
            finally:
                await anyio.sleep(0.01)
                await _client.patch(_P("log"), "append", "-" + name)
        @contextmanager
        def plain():
            yield "plain"
        with anyio.fail_after(30):
            names = [await _self.open_context(one("a"))]
            names.append(await _self.open_context(anyio.create_task_group()))
        names[1].start_soon(anyio.sleep_forever)
        names[1] = "group"
        names.append(await _self.open_context(one("b")))
        names.append(await _self.open_context(plain()))
        names.append((await _self.open_context(_client.watch(_P("x")))).__class__.__name__)
        return names, log
    """
    async with bench("n1") as b:
        # The task group is closed by its own end, which waits for its task: cancel that.
        text = text.replace("names[1].start_soon(anyio.sleep_forever)", "names[1].cancel_scope")
        assert await returned(b, text) == [["a", "group", "b", "plain", "Watch"], ["+a", "+b"]]
        assert await b.get("log") == ["-b", "-a"]


async def test_contexts_are_closed_when_the_run_is_stopped() -> None:
    text = """
        import anyio
        from contextlib import asynccontextmanager
        @asynccontextmanager
        async def one(name):
            try:
                yield
            finally:
                await anyio.sleep(0.01)
                await _client.patch(_P("log"), "append", name)
        await _self.open_context(one("a"))
        await _self.open_context(one("b"))
        await _client.set(_P("open"), True)
        await anyio.sleep_forever()
    """
    async with bench("n1") as b:
        place = await b.job(text)
        await b.value(P("open"))
        await commands.disable(b.desk, place)
        await b.state()
        assert await b.get("log") == ["b", "a"]


async def test_context_that_cannot_be_entered_raises_where_it_was_opened() -> None:
    text = """
        from contextlib import asynccontextmanager
        @asynccontextmanager
        async def broken():
            raise OSError("no bus")
            yield
        try:
            await _self.open_context(broken())
        except OSError as exc:
            return str(exc)
    """
    assert await result_of(text) == "no bus"


async def test_failing_context_fails_the_run() -> None:
    text = """
        import anyio
        async def fails():
            await anyio.sleep(0.01)
            raise OSError("gone")
        group = await _self.open_context(anyio.create_task_group())
        group.start_soon(fails)
        await anyio.sleep_forever()
    """
    async with bench("n1") as b:
        await b.job(text, delay=1000)
        assert (await b.state()).reason == "failed: OSError: gone"


async def test_mirrors_that_a_script_made_end_with_its_run() -> None:
    text = """
        from moat_kv.code import CodeRoot
        cr = await CodeRoot.as_handler(_client)
        return cr("forty.two")
    """
    async with bench() as b:
        node = await b.node("n1")
        await b.store("forty.two", "return 42", is_async=None)
        before = len(node.client.shared.mirrors)
        assert await returned(b, text) == 42
        with anyio.fail_after(LIMIT_S):
            while len(node.client.shared.mirrors) > before:
                await anyio.sleep(0.01)
