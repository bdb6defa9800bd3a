# ruff: noqa: F704, F821
"""Poll every thermometer of a 1-wire bus into the tree, for as long as the job runs.

Below `base` each one has an entry FAMILY.SERIAL with `value` (degrees Celsius) and `at` (seconds
since 1970). What cannot be read, or is gone, has an error record until it reads again. `state`
is an entry that says whether the bus is there; while it is not, it is tried again and again.
"""

import time

from onewire.bus import THERMOMETERS, Bus, Device, OwError, OwGone
from onewire.follow import BackOff, Health, Marks

base = _P(base)
bus = await _self.open_context(Bus(host, port))
health = Health(_self, _P(state), BackOff(retry_s, retry_max_s))
marks = Marks(_self)
known = set()


async def remember():
    """Thermometers that an earlier run has seen are missed, too, if they are gone."""
    async for row in _client.get_tree(base, min_depth=2, max_depth=2):
        if "value" in row and row.path[0] in THERMOMETERS:
            known.add(Device(*row.path))


async def read(device):
    path = base / device.family / device.serial
    try:
        celsius = await bus.temperature(device)
    except (OwError, ValueError) as error:
        await marks.bad(path, error, device=f"{device.family}.{device.serial}")
        return False
    await _self.set(path, {"value": celsius, "at": time.time()})
    await marks.good(path)
    return True


async def poll():
    """One round. Returns the seconds until the next."""
    began = time.monotonic()
    try:
        here = await bus.devices(families)
        if here:
            await bus.convert()
        good = [await read(device) for device in here]
    except (OwGone, OwError) as error:
        return await health.down(error)
    for device in known.difference(here):
        path = base / device.family / device.serial
        await marks.bad(path, "not on the bus", device=f"{device.family}.{device.serial}")
    known.update(here)
    await health.up(sensors=len(here), read=sum(good))
    return max(interval_s - (time.monotonic() - began), 0.01)


await remember()
timer = await _self.timer(0)
await timer.run(await poll())
async for msg in _info:
    if msg is None:
        raise RuntimeError("too slow for the messages")  # a failure, so that we start again
    if isinstance(msg, _cls.TimerMsg):
        await timer.run(await poll())
