"""What comes to a script's `_info`: the group, watches, timers, messages; and what waits there."""

from __future__ import annotations

import pytest

from moat_kv import P
from tests.runner.bench import bench, result_of, returned

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]


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
        result = await returned(b, text)
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
        assert await returned(b, text) == [[*range(10), None], True]


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
        assert await returned(b, text) == [40, True]
