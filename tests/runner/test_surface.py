"""What every script is given, line by line: the same inline and in a process of its own.

Each is a job of its own beside the others, on one server; what it returns is what has to be true.
More is in `test_admin`, `test_listening`, `test_with_the_run`, `test_running`,
`test_worked_example` and `test_hostile_scripts`.
"""

from __future__ import annotations

from typing import Any

import pytest

from moat_kv import P
from tests.runner.bench import Bench, bench

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]

#: Of async scripts.
LINES: dict[str, tuple[str, Any]] = {
    "results are mappings and have attributes": (
        "r = await _client.get(_P('given.v'))\n"
        "return r.value, r['value'], 'value' in r, r.rev > 0, r.chain == r['chain']",
        [1, 1, True, True, True],
    ),
    "what is missing is absent": (
        "r = await _client.get(_P('none'))\nreturn 'value' in r, hasattr(r, 'value')",
        [False, False],
    ),
    "mappings are read by attribute": ("return (await _client.get(_P('given.m'))).value.a.b", 2),
    "rows of a tree have relative paths": (
        "return sorted([str(r.path) async for r in _client.get_tree(_P('given'), min_depth=1)])",
        ["m", "v"],
    ),
    "digits": (
        "return [_digits(123456789), _digits(0), _digits(0.00123456, 3), _digits(-2.5, digits=1)]",
        [123457000, 0, 0.00123, -2.0],
    ),
    "paths": (
        "return _P('a:1') == _Path('a', 1), _P('a') / 'b' == _P('a.b'), str(_P('a.b.c') % 1)",
        [True, True, "a.b"],
    ),
    "log": ("import logging\nreturn isinstance(_log, logging.Logger)", True),
    "data are globals": ("return extra", 5),
    "get raises KeyError": (
        "try:\n  await _self.get(_P('none'))\nexcept KeyError:\n  return True",
        True,
    ),
    "set gives and takes chain": (
        "chain = await _self.set(_P('made.chain'), 1, chain=None)\n"
        "old = await _client.get(_P('made.chain'))\n"
        "await _self.set(_P('made.chain'), 2, chain=old.chain)\n"
        "try:\n  await _self.set(_P('made.chain'), 3, chain=old.chain)\n"
        "except Exception as exc:\n  return type(exc).__name__, await _self.get(_P('made.chain'))",
        ["Conflict", 2],
    ),
    "text is no path": (
        "found = []\n"
        "for call in (_self.watch, _self.monitor, _self.get, _self.send):\n"
        "  try:\n    await call('a.b', *([1] if call == _self.send else []))\n"
        "  except TypeError:\n    found.append(1)\n"
        "return found",
        [1, 1, 1, 1],
    ),
    "timer that is not started": (
        "timer = await _self.timer(0)\nother = await _self.timer(0.01)\n"
        "async for msg in _info:\n"
        "  if isinstance(msg, _cls.TimerMsg):\n"
        "    if msg.msg is timer: return 'both'\n"
        "    assert msg.msg is other\n    await timer.run(0.01)",
        "both",
    ),
    "cancel acts at once, and may be awaited": (
        "import anyio\n"
        "one = await _self.spawn(anyio.sleep, 60)\none.cancel()\n"
        "two = await _self.spawn(anyio.sleep, delay=60)\nawait two.cancel()\n"
        "three = await _self.timer(60)\nawait three.cancel()\n"
        "four = await _self.watch(_P('given.v'))\nawait four.cancel()\n"
        "five = await _self.monitor(_P('given.v'))\nawait five.cancel()\n"
        "return 1",
        1,
    ),
    "messages in order": (
        "first, second = await _info.get(), await _info.get()\n"
        "await _self.watch(_P('given.v'))\nawait _self.watch(_P('given.m'), fetch=False)\n"
        "seen = []\n"
        "async for msg in _info:\n"
        "  seen.append(type(msg).__name__)\n"
        "  if isinstance(msg, _cls.ReadyMsg):\n"
        "    return type(first).__name__, second.msg, list(first.msg.members), seen, msg.msg",
        ["DetachedState", 0, ["n1"], ["ChangeMsg", "ReadyMsg"], 1],
    ),
    "watch has absolute paths": (
        "await _self.watch(_P('given'), max_depth=-1, min_depth=1)\nseen = []\n"
        "async for msg in _info:\n"
        "  if isinstance(msg, _cls.ChangeMsg): seen.append(str(msg.path))\n"
        "  elif isinstance(msg, _cls.ReadyMsg) and msg.msg: return sorted(seen)",
        ["given.m", "given.v"],
    ),
    "own messages": (
        "await _info.get()\nawait _info.get()\nawait _info.put('x')\n"
        "return _info.qsize(), await _info.get()",
        [1, "x"],
    ),
    "broadcasts, values and raw": (
        "await _self.monitor(_P('told.v'))\nawait _self.monitor(_P('told.r'), raw=True)\n"
        "await _self.send(_P('told.v'), {'a': 1})\nawait _self.send(_P('told.r'), raw=b'x')\n"
        "seen = {}\n"
        "async for msg in _info:\n"
        "  if isinstance(msg, _cls.MQTTmsg):\n"
        "    seen[str(msg.topic)] = msg.value.a if hasattr(msg, 'value') else msg.raw\n"
        "    if len(seen) == 2: return seen",
        {"told.v": 1, "told.r": b"x"},
    ),
    "classes can be subclassed": (
        "class Mine(_cls.ChangeMsg): pass\n"
        "await _self.watch(_P('given.v'), cls=Mine)\n"
        "async for msg in _info:\n"
        "  if isinstance(msg, Mine): return msg.value",
        1,
    ),
    "contexts": (
        "import contextlib\n"
        "@contextlib.asynccontextmanager\n"
        "async def manager():\n  yield 7\n"
        "return await _self.open_context(manager())",
        7,
    ),
    "setup is done": ("return await _self.setup_done()", None),
    "fence and node": (
        "return type(_self.fence) is int and _self.fence > 0, _self.node, _cfg.runner.name",
        [True, "n1", "n1"],
    ),
    "settings have no credentials": (
        "return 'client' in _cfg, 'url' in repr(_cfg)",
        [False, False],
    ),
    "nothing of the names is missing": (
        "return sorted(n for n in globals() if n[0] == '_' != n[1] and len(n) > 1)",
        ["_P", "_Path", "_cfg", "_client", "_cls", "_digits", "_info", "_log", "_self"],
    ),
}

#: Of both kinds of synchronous ones.
SYNCHRONOUS: dict[str, tuple[str, Any]] = {
    "results are mappings and have attributes": (
        "r = _client.get(_P('given.v'))\nreturn r.value, r['value'], 'value' in r",
        [1, 1, True],
    ),
    "rows of a tree have relative paths": (
        "return sorted(str(row.path) for row in _client.get_tree(_P('given'), min_depth=1))",
        ["m", "v"],
    ),
    "writing": (
        "_client.set(_P('made.sync') / name, 1)\nreturn _client.get(_P('made.sync') / name).value",
        1,
    ),
    "data are globals": ("return extra", 5),
    "digits and paths": ("return _digits(1.23456789), str(_P('a') / 1)", [1.23457, "a:1"]),
    "nothing of the names is missing": (
        "return sorted(n for n in globals() if n[0] == '_' != n[1] and len(n) > 1)",
        ["_P", "_Path", "_cfg", "_client", "_cls", "_digits", "_log"],
    ),
}


async def found(b: Bench, lines: dict[str, tuple[str, Any]], is_async: bool | None) -> Any:
    """What each returns, or how it failed."""
    await b.desk.set(P("given.v"), 1)
    await b.desk.set(P("given.m"), {"a": {"b": 2}})
    for number, (text, _) in enumerate(lines.values()):
        data = {"extra": 5, "name": number}
        await b.job(text, path=f"j{number}", is_async=is_async, delay=1000, data=data)
    results = {}
    for number, name in enumerate(lines):
        state = await b.state(path=f"j{number}")
        results[name] = state.result if state.reason == "done" else state.reason
    return results


async def test_async_script_finds_all_that_it_is_promised() -> None:
    async with bench("n1") as b:
        results = await found(b, LINES, True)
        assert results == {name: value for name, (_, value) in LINES.items()}


@pytest.mark.parametrize("is_async", [None, False], ids=["quick", "thread"])
async def test_synchronous_script_finds_all_that_it_is_promised(is_async: bool | None) -> None:
    async with bench("n1") as b:
        results = await found(b, SYNCHRONOUS, is_async)
        assert results == {name: value for name, (_, value) in SYNCHRONOUS.items()}


async def test_groups_states_are_told_by_their_names() -> None:
    text = """
        seen = []
        async for msg in _info:
            if isinstance(msg, _cls.ActorState) and not isinstance(msg, _cls.ReadyMsg):
                seen.append([type(msg).__name__, sorted(msg.msg.members), msg.msg.nodes])
                await _client.set(_P("seen"), seen)
    """
    async with bench() as b:
        await b.node("n1", nodes=3)
        await b.job(text)
        await b.value(P("seen"), lambda seen: seen == [["DetachedState", ["n1"], 3]])
        await b.node("n2")
        # A state that waits to be read gives way to the next one.
        await b.value(P("seen"), lambda seen: len(seen) == 2)
        await b.node("n3")
        seen = await b.value(P("seen"), lambda seen: len(seen[-1][1]) == 3)
        names = [name for name, _, _ in seen]
        assert names == ["DetachedState", "PartialState", "CompleteState"]
        assert seen[1][1] == ["n1", "n2"]
