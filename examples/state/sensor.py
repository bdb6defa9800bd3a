# ruff: noqa: F704, F821
"""A job: keeps what a 1-wire thermometer shows in a room's model.

It has a process and a line to the server of its own, as jobs do. The first thermometer of the bus
is taken, unless `device` names one (28.0123456789AB).
"""

from onewire.bus import THERMOMETERS, Bus, OwError, OwGone, device_of
from thermostat.model import Thermostat

from moat_kv.state import State, attach

bus = await _self.open_context(Bus(host, port))


async def measure():
    """What the thermometer shows; None if it cannot be read."""
    try:
        found = [device_of(device)] if device else await bus.devices(THERMOMETERS)
        return await bus.temperature(found[0]) if found else None
    except (OwError, OwGone, ValueError):
        return None


async with attach(_client):
    async with State() as state:
        await state.load(Thermostat(room))
    timer = await _self.timer(0)
    await timer.run(0.01)
    async for msg in _info:
        if isinstance(msg, _cls.TimerMsg):
            celsius = await measure()
            async with State(Thermostat.instance(room)) as state:
                thermostat = state.checkout(Thermostat, room)
                if celsius is not None:
                    celsius = round(celsius, 1)
                if thermostat.actual != celsius:
                    thermostat.actual = celsius
                    await state.commit(thermostat)
            await timer.run(interval_s)
