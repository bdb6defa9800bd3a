# ruff: noqa: F704, F706, F821
"""Read one thermometer once: the smallest job that needs one node's hardware.

`sensor` names it; empty, the first one on the bus is read. The reading goes to `target_entry`
and is the job's result.
"""

import time

from onewire.bus import THERMOMETERS, Bus, device_of

bus = await _self.open_context(Bus(host, port))
if sensor:
    device = device_of(sensor)
    if device is None:
        await _self.error(message=f"not a thermometer's name: {sensor!r}")
else:
    here = await bus.devices(THERMOMETERS)
    if not here:
        await _self.error(message="there is no thermometer on the bus")
    device = here[0]
celsius = await bus.temperature(device)
await _self.set(_P(target_entry), {"value": celsius, "at": time.time()})
return celsius
