# ruff: noqa: F704, F821
"""Report this node's load, on every node of the group: 1, 5 and 15 minute averages."""

import os
import time

timer = await _self.timer(0)
await timer.run(0.01)
async for msg in _info:
    if msg is None:
        raise RuntimeError("too slow for the messages")  # a failure, so that we start again
    if isinstance(msg, _cls.TimerMsg):
        loads = [round(load, 2) for load in os.getloadavg()]
        await _self.set(_P(base) / _self.node, {"load": loads, "at": time.time()})
        await timer.run(interval_s)
