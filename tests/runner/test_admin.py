"""What scripts do with `_self`, and what they find in `_info`."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from moat_kv import P, errors
from moat_kv.client import error_record
from moat_kv_runner import commands
from tests.runner.bench import LIMIT_S, Bench, bench

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]


async def result_of(text: str, **attributes: Any) -> Any:
    """What a script returns on a single node; its failure fails the test."""
    async with bench("n1") as b:
        return await run(b, text, **attributes)


async def run(b: Bench, text: str, **attributes: Any) -> Any:
    await b.job(text, delay=1000, **attributes)
    state = await b.state()
    assert state.reason == "done"
    return state.result


async def test_group_state_comes_first_then_ready_0() -> None:
    text = """
        first, second = await _info.get(), await _info.get()
        assert isinstance(first, _cls.DetachedState) and isinstance(first, _cls.ActorState)
        assert type(second) is _cls.ReadyMsg
        return list(first.msg.members), first.msg.nodes, second.msg, _info.qsize()
    """
    assert await result_of(text) == [["n1"], None, 0, 0]


async def test_watch_of_one_entry_sends_its_value_then_changes() -> None:
    text = """
        await _client.set(_P("a.b"), 1)
        await _client.set(_P("a.b.c"), "below")
        await _self.watch(_P("a.b"))
        seen = []
        async for msg in _info:
            if isinstance(msg, _cls.ReadyMsg):
                seen.append(("ready", msg.msg))
                if msg.msg:
                    await _client.set(_P("a.b.c"), "not told")
                    await _client.set(_P("a.b"), 2)
            elif isinstance(msg, _cls.ChangeMsg):
                seen.append((str(msg.path), msg.value, msg.msg.value))
                if msg.value == 2:
                    return seen
    """
    assert await result_of(text) == [["ready", 0], ["a.b", 1, 1], ["ready", 1], ["a.b", 2, 2]]


async def test_deleted_entry_has_no_value() -> None:
    text = """
        await _client.set(_P("a"), 1)
        await _self.watch(_P("a"))
        async for msg in _info:
            if isinstance(msg, _cls.ChangeMsg):
                if "value" not in msg:
                    return hasattr(msg, "value"), str(msg.path)
                await _client.delete(_P("a"))
    """
    assert await result_of(text) == [False, "a"]


async def test_watch_without_fetch_sends_only_changes_and_no_ready() -> None:
    text = """
        await _client.set(_P("a"), 1)
        await _self.watch(_P("a"), fetch=False)
        await _client.set(_P("a"), 2)
        seen = []
        async for msg in _info:
            seen.append(type(msg).__name__)
            if isinstance(msg, _cls.ChangeMsg):
                return seen, msg.value
    """
    assert await result_of(text) == [["DetachedState", "ReadyMsg", "ChangeMsg"], 2]


async def test_subtree_comes_parents_first_between_its_depths() -> None:
    text = """
        for path in ("t.a.b.c", "t.a", "t", "t.a.b"):
            await _client.set(_P(path), path)
        await _self.watch(_P("t"), max_depth=2, min_depth=1)
        seen = []
        async for msg in _info:
            if isinstance(msg, _cls.ChangeMsg):
                seen.append(msg.value)
            elif isinstance(msg, _cls.ReadyMsg) and msg.msg == 1:
                return seen
    """
    assert await result_of(text) == ["t.a", "t.a.b"]


async def test_ready_counts_the_watches_that_fetch() -> None:
    text = """
        await _self.watch(_P("a"))
        await _self.watch(_P("b"), max_depth=-1)
        await _self.watch(_P("c"), fetch=False)
        async for msg in _info:
            if isinstance(msg, _cls.ReadyMsg) and msg.msg == 2:
                gone = await _self.watch(_P("d"))
                await gone.cancel()
                late = await _self.watch(_P("e"))
            elif isinstance(msg, _cls.ReadyMsg) and msg.msg == 3:
                return "three"
    """
    assert await result_of(text) == "three"


async def test_sources_are_told_apart_by_class() -> None:
    text = """
        class Here(_cls.ChangeMsg): pass
        class There(_cls.ChangeMsg): pass
        class Tick(_cls.TimerMsg): pass
        class Tock(_cls.TimerMsg): pass
        class Call(_cls.MQTTmsg): pass
        await _client.set(_P("x"), 1)
        await _self.watch(_P("x"), cls=Here)
        await _self.watch(_P("x"), cls=There)
        await _self.timer(0.01, cls=Tick)
        await _self.timer(0.02, cls=Tock)
        await _self.monitor(_P("m"), cls=Call)
        await _self.send(_P("m"), 1)
        seen = set()
        async for msg in _info:
            seen.add(type(msg).__name__)
            if len(seen) == 7:
                return sorted(seen)
    """
    names = ["Call", "DetachedState", "Here", "ReadyMsg", "There", "Tick", "Tock"]
    assert await result_of(text) == names


async def test_cancelled_watch_is_silent_at_once() -> None:
    text = """
        await _client.set(_P("a"), 1)
        watch = await _self.watch(_P("a"))
        while True:
            msg = await _info.get()
            if isinstance(msg, _cls.ChangeMsg):
                break
        await _client.set(_P("a"), 2)
        while not _info.qsize():
            await _client.get(_P("a"))
        watch.cancel()  # what waits is taken back
        await _client.set(_P("a"), 3)
        await _self.timer(0.05)
        return [type(await _info.get()).__name__ for _ in range(1)]
    """
    async with bench("n1") as b:
        result = await run(b, text)
        assert result in (["TimerMsg"], ["ReadyMsg"])


async def test_timer_fires_once_and_can_be_run_again() -> None:
    text = """
        import anyio
        timer = await _self.timer(0)
        await anyio.sleep(0.02)
        assert _info.qsize() == 2, "0 makes it without starting it"
        count = 0
        await timer.run(0.01)
        async for msg in _info:
            if isinstance(msg, _cls.TimerMsg):
                assert msg.msg is timer
                count += 1
                if count == 3:
                    return count
                await timer.run(0.01)
    """
    assert await result_of(text) == 3


async def test_timer_that_is_restarted_or_cancelled_does_not_fire_before() -> None:
    text = """
        import anyio
        long, short = await _self.timer(0.01), await _self.timer(0.01)
        while _info.qsize() < 4:
            await anyio.sleep(0.005)  # until both have fired, unread
        begin = anyio.current_time()
        await long.run(0.2)
        await short.cancel()
        async for msg in _info:
            if isinstance(msg, _cls.TimerMsg):
                return msg.msg is long and anyio.current_time() - begin > 0.15
    """
    assert await result_of(text) is True


async def test_monitor_hears_broadcasts_as_values_or_raw() -> None:
    text = """
        class Raw(_cls.MQTTmsg): pass
        await _self.monitor(_P("topic"))
        await _self.monitor(_P("bytes"), cls=Raw, raw=True)
        await _self.send(_P("topic"), {"x": 1})
        await _self.send(_P("bytes"), raw=b"abc")
        seen = {}
        async for msg in _info:
            if isinstance(msg, Raw):
                seen["raw"] = (str(msg.topic), msg.raw, hasattr(msg, "value"))
            elif isinstance(msg, _cls.MQTTmsg):
                seen["value"] = (str(msg.path), msg.value.x, hasattr(msg, "raw"))
            if len(seen) == 2:
                return seen
    """
    result = await result_of(text)
    assert result["value"] == ["topic", 1, False]
    assert result["raw"] == ["bytes", b"abc", False]


async def test_cancelled_monitor_is_silent() -> None:
    text = """
        monitor = await _self.monitor(_P("topic"))
        await _self.send(_P("topic"), 1)
        while not isinstance(await _info.get(), _cls.MQTTmsg):
            pass
        await monitor.cancel()
        await _self.send(_P("topic"), 2)
        await _self.timer(0.05)
        return type(await _info.get()).__name__
    """
    assert await result_of(text) == "TimerMsg"


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


async def test_set_get_and_chain() -> None:
    text = """
        first = await _self.set(_P("a"), 1, chain=None)
        second = await _self.set(_P("a"), 2, chain=first.chain)
        try:
            await _self.set(_P("a"), 3, chain=first.chain)
        except Exception as exc:
            conflict = type(exc).__name__
        try:
            await _self.get(_P("nothing"))
        except KeyError as exc:
            missing = str(exc.args[0])
        return await _self.get(_P("a")), conflict, missing, second.rev > first.rev
    """
    assert await result_of(text) == [2, "Conflict", "nothing", True]


async def test_text_is_no_path() -> None:
    text = """
        calls = (
            lambda: _self.watch("a"), lambda: _self.monitor("a"), lambda: _self.set("a", 1),
            lambda: _self.get("a"), lambda: _self.send("a", 1), lambda: _self.error("a"),
            lambda: _self.record_error("a"), lambda: _self.resolve_error("a"),
            lambda: _self.watch(_P("a"), cls=_cls.TimerMsg), lambda: _self.timer(1, cls=int),
            lambda: _self.send(_P("a")),
        )
        refused = 0
        for call in calls:
            try:
                await call()
            except TypeError:
                refused += 1
        return refused, len(calls)
    """
    assert await result_of(text) == [11, 11]


async def test_error_is_recorded_and_fails_the_run() -> None:
    async with bench("n1") as b:
        place = await b.job("await _self.error(message='no bus', data={'port': 1})", delay=1000)
        state = await b.state()
        assert state.backoff == 1
        assert state.reason == "failed: ErrorRecorded: no bus"
        record = await error_record.find(b.desk, "run", place)
        assert record is not None
        assert (record.count, record.message) == (1, "no bus")
        assert record.nodes["n1"].data == {"port": 1}


async def test_error_of_an_entry_is_recorded_and_resolved_by_the_script() -> None:
    text = """
        try:
            1 / 0
        except ZeroDivisionError as exc:
            await _self.record_error(_P("home.sensor"), exc=exc, sensor=7)
        try:
            await _self.error(_P("home.other"), message="bad")
        except _cls.ErrorRecorded:
            pass
        return await _self.resolve_error(_P("home.other")), await _self.resolve_error(_P("none"))
    """
    async with bench("n1") as b:
        assert await run(b, text) == [True, False]
        record = await error_record.find(b.desk, "run", P("home.sensor"))
        assert record is not None
        assert record.message == "ZeroDivisionError: division by zero"
        assert "1 / 0" in (record.nodes["n1"].trace or "")
        assert record.nodes["n1"].data == {"sensor": 7}
        assert [str(each.path) for each in await error_record.records(b.desk)] == ["home.sensor"]


async def test_setup_done_forgets_failures_and_resolves_the_error() -> None:
    text = """
        import anyio
        n = (await _client.patch(_P("n"), "add", 1)).value
        if n < 3:
            raise RuntimeError(n)
        await _self.setup_done()
        await anyio.sleep_forever()
    """
    async with bench("n1") as b:
        place = await b.job(text, delay=0.01)
        await b.state(lambda state: state.backoff == 2)
        await b.state(lambda state: state.running and state.backoff == 0)
        where = error_record.place("run", place, b.places)
        assert (await b.value(where, lambda value: value["resolved"]))["resolved_by"] == "success"


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
        assert await run(b, text) == [["a", "group", "b", "plain", "Watch"], ["+a", "+b"]]
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


async def test_messages_that_overflow_end_with_none() -> None:
    text = """
        import anyio
        await _self.monitor(_P("m"))
        for n in range(20):
            await _self.send(_P("m"), n)
        while not _info.ended:
            await anyio.sleep(0.01)
        seen = [msg async for msg in _info]
        return [getattr(msg, "value", None) for msg in seen[2:]], seen[-1] is None
    """
    async with bench("n1", queue=10) as b:
        assert await run(b, text) == [[*range(10), None], True]


async def test_waiting_changes_are_conflated_and_a_large_subtree_does_not_overflow() -> None:
    text = """
        import anyio
        await _self.watch(_P("many"), max_depth=-1)
        while _info.qsize() < 12:
            await anyio.sleep(0.01)
        for n in range(30):
            await _client.set(_P("many") / 0, 1000 + n)
        await anyio.sleep(0.05)
        seen = []
        async for msg in _info:
            if isinstance(msg, _cls.ChangeMsg):
                seen.append((msg.path[-1], msg.value))
                if msg.value == 1029:
                    return len({name for name, _ in seen}), len(seen) < 45
    """
    async with bench("n1", queue=10) as b:
        for n in range(40):
            await b.desk.set(P("many") / n, n)
        assert await run(b, text) == [40, True]


async def test_facts_and_names() -> None:
    text = """
        import logging
        assert isinstance(_log, logging.Logger)
        assert _Path("a", 1) == _P("a:1")
        assert _digits(123.456789, digits=4) == 123.5 and _digits(0) == 0
        try:
            _cfg.runner.queue = 5
        except AttributeError:
            pass
        else:
            raise AssertionError
        assert "client" not in _cfg and _cfg["places"].run == _P(":.moat.kv.run")
        assert _cls.NotGiven is not None and not _cls.NotGiven
        return sorted(_cls), str(_self.path), _self.node, _cfg.runner.name, str(_cfg.runner.group)
    """
    assert await result_of(text) == [
        sorted(
            [
                "ActorState",
                "BrokenState",
                "ChangeMsg",
                "CompleteState",
                "DetachedState",
                "ErrorRecorded",
                "LostClaim",
                "MQTTmsg",
                "NotGiven",
                "PartialState",
                "ReadyMsg",
                "RunnerMsg",
                "TimerMsg",
            ]
        ),
        ":.moat.kv.run.any.default.job",
        "n1",
        "n1",
        "default",
    ]


async def test_bound_client_is_refused_once_the_claim_has_passed_on() -> None:
    text = """
        import anyio
        await _client.set(_P("fence"), _self.fence)
        if await _client.get(_P("again")):
            pass
        try:
            while True:
                await _self.set(_P("beat"), anyio.current_time())
                await anyio.sleep(0.01)
        except _cls.LostClaim:
            raise
    """
    async with bench("n1") as b:
        await b.job(text)
        first = await b.value(P("fence"))
        assert (await b.desk.get(b.claim_path())).rev == first
        await b.desk.delete(b.claim_path())
        second = await b.value(P("fence"), lambda fence: fence != first)
        assert second > first
        late = b.desk.bound(fence=(b.claim_path(), first))
        with pytest.raises(errors.StaleFence):
            await late.set(P("beat"), "late")
        state = await b.state(lambda state: state.running and state.fence == second)
        assert state.backoff == 0, "losing a claim is no failure"
        assert await error_record.records(b.desk) == []


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
        assert await run(b, text) == 42
        with anyio.fail_after(LIMIT_S):
            while len(node.client.shared.mirrors) > before:
                await anyio.sleep(0.01)
