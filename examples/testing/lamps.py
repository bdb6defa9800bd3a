# ruff: noqa: F704, F821
"""Work out the power of the kitchen's lamps; remind of them when they have been on for an hour."""

await _self.watch(_P("home.kitchen"))
reminder = await _self.timer(0)
async for msg in _info:
    if msg is None:
        raise RuntimeError("too slow for the messages")
    if isinstance(msg, _cls.TimerMsg):
        await _self.send(_P("home.bell"), "the lamps are on")
    elif isinstance(msg, _cls.ChangeMsg) and "value" in msg:
        lamps = msg.value.lamps
        await _self.set(_P("home.power"), lamps * watts)
        if lamps:
            await reminder.run(3600)
        else:
            reminder.cancel()
