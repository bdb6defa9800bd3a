"""The example of the reference runs as stored code, but for its handlers, paths and delay."""

from __future__ import annotations

import pytest

from moat_kv import P
from tests.runner.bench import bench

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]

HANDLERS = """
async def process_timeout():
    await _client.patch(_P("log"), "append", ["timeout"])

async def process_data(msg):
    await _client.patch(_P("log"), "append", [str(msg.path), msg.value])
"""

AS_IN_THE_REFERENCE = (
    HANDLERS
    + """
await _self.watch(_P("some.special.path"))
await _self.watch(_P("some.other.path"))
await _self.timer(0.3)
async for msg in _info:
   if msg is None:
      return  # system was stalled
   elif isinstance(msg, _cls.TimerMsg):
      await process_timeout()
   elif isinstance(msg, _cls.ChangeMsg):
      await process_data(msg.msg)
"""
)

TOLD_APART_BY_CLASS = """
class SpecialMsg(_cls.ChangeMsg):
    pass

class OtherMsg(_cls.ChangeMsg):
    pass

class EndMsg(_cls.TimerMsg):
    pass

await _self.watch(_P("some.special.path"), cls=SpecialMsg)
await _self.watch(_P("some.other.path"), cls=OtherMsg)
end = await _self.timer(0, cls=EndMsg)
log = []
async for msg in _info:
    if msg is None:
        return
    elif isinstance(msg, EndMsg):
        return log
    elif isinstance(msg, SpecialMsg):
        log.append(["special", msg.msg.value])
        if msg.msg.value == 3:
            await end.run(delay)
    elif isinstance(msg, OtherMsg):
        log.append(["other", msg.msg.value])
    elif isinstance(msg, _cls.ReadyMsg):
        log.append(["ready", msg.msg])
        if msg.msg == 2:
            await _self.set(_P("answer"), "ready")
"""


async def test_two_watches_and_a_timer() -> None:
    async with bench("n1") as b:
        await b.desk.set(P("some.special.path"), 1)
        await b.job(AS_IN_THE_REFERENCE)
        await b.value(P("log"), lambda log: ["some.special.path", 1] in log)
        await b.desk.set(P("some.other.path"), 2)
        await b.value(P("log"), lambda log: ["some.other.path", 2] in log)
        await b.desk.set(P("some.other.path.below"), "is not watched")
        await b.desk.set(P("some.other.path"), 3)
        await b.value(P("log"), lambda log: ["some.other.path", 3] in log)
        log = await b.value(P("log"), lambda log: ["timeout"] in log)
        # The timer goes on beside the watches, and may be first on a busy machine.
        changes = [each for each in log if each != ["timeout"]]
        assert changes == [["some.special.path", 1], *(["some.other.path", n] for n in (2, 3))]
        assert len(log) == 4
        assert (await b.state(lambda state: state.running)).node == "n1"


async def test_messages_told_apart_by_class() -> None:
    async with bench("n1") as b:
        await b.desk.set(P("some.special.path"), 1)
        await b.desk.set(P("some.other.path"), 2)
        await b.job(TOLD_APART_BY_CLASS, variables=["delay"], data={"delay": 0.05})
        await b.value(P("answer"))
        await b.desk.set(P("some.special.path"), 3)
        log = (await b.state()).result
        ready = log.index(["ready", 2])
        assert sorted(log[1:ready]) == [["other", 2], ["special", 1]]
        assert log[0] == ["ready", 0]
        assert log[ready + 1 :] == [["special", 3]]
