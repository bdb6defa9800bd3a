# ruff: noqa: F704, F821
"""Stand for a radio that any node of the group could serve, but only one may at a time.

Every `interval_s` it writes to `entry` who polls and how often it has; `fence` rises with each
change of node. The group's state, as it is told to us, goes to `group_entry`.
"""

import time

node = _self.node
count = 0
states = (_cls.CompleteState, _cls.PartialState, _cls.DetachedState, _cls.BrokenState)
timer = await _self.timer(interval_s)
async for msg in _info:
    if msg is None:
        raise RuntimeError("too slow for the messages")  # a failure, so that we start again
    if isinstance(msg, states):
        state = type(msg).__name__.removesuffix("State").lower()
        await _self.set(_P(group_entry), {"state": state, "node": node, "at": time.time()})
    elif isinstance(msg, _cls.TimerMsg):
        count += 1
        value = {"node": node, "count": count, "fence": _self.fence, "at": time.time()}
        await _self.set(_P(entry), value)
        await timer.run(interval_s)
