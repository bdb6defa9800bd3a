# ruff: noqa: F704, F821
"""Keep the switches of a 1-wire bus and their entries alike, both ways.

Below `base` each output has an entry FAMILY.SERIAL.CHANNEL, true or false. A change of the entry
is written to the bus at once; a change on the bus, seen at the next poll, is written to the
entry, unless somebody has changed that meanwhile. `prefer` ("entry" or "bus") says who is right
when the job starts and when a switch, or the whole bus, was away.
"""

import time

from onewire.bus import CHANNELS, Bus, Device, OwError, OwGone
from onewire.follow import BackOff, Health, Marks, Pair

from moat_kv.errors import Conflict

base = _P(base)
bus = await _self.open_context(Bus(host, port))
health = Health(_self, _P(state), BackOff(retry_s, retry_max_s))
marks = Marks(_self)
pairs = {}


def pair_at(key):
    return pairs.setdefault(key, Pair())


def path_of(key):
    device, channel = key
    return base / device.family / device.serial / channel


async def to_bus(key):
    pair = pairs[key]
    on = pair.entry
    try:
        await bus.switch(*key, on)
    except OwError as error:
        await marks.bad(path_of(key), error, wanted=on)
    else:
        pair.bus_written(on)
        await marks.good(path_of(key))


async def to_entry(key, on):
    pair = pairs[key]
    try:
        result = await _client.set(path_of(key), on, expect=pair.expect)
    except Conflict:
        _log.debug("%s was changed meanwhile, which is on its way to us", path_of(key))
    else:
        pair.entry_written(on, result.rev)
        await marks.good(path_of(key))


async def compare(device):
    try:
        outputs = await bus.outputs(device)
    except (OwError, ValueError) as error:
        for channel in CHANNELS[device.family]:
            pair_at((device, channel)).bus_lost()
            await marks.bad(path_of((device, channel)), error)
        return
    for channel, on in outputs.items():
        key = device, channel
        pair = pair_at(key)
        side = pair.bus_is(on, prefer)
        if side == "bus":
            await to_bus(key)
        elif side == "entry":
            await to_entry(key, on)
        elif not pair.wrong:
            await marks.good(path_of(key))


async def poll():
    """Compare everything. Returns the seconds until the next round."""
    began = time.monotonic()
    try:
        here = await bus.devices(CHANNELS)
        for device in here:
            await compare(device)
    except (OwGone, OwError) as error:
        return await lost(error)
    for key in pairs:
        if key[0] not in here:
            pairs[key].bus_lost()
            await marks.bad(path_of(key), "not on the bus")
    await health.up(switches=len(here), outputs=len(pairs))
    return max(interval_s - (time.monotonic() - began), 0.01)


async def lost(error):
    for pair in pairs.values():
        pair.bus_lost()
    return await health.down(error)


async def changed(change, news):
    """An entry below `base` has changed, or, without `news`, is there as we begin."""
    family, serial, channel = change.path[len(base) :]
    if channel not in CHANNELS.get(family, ()):
        await marks.bad(change.path, f"no output of a 1-wire switch: {family}, {channel}")
        return
    key = Device(family, serial), channel
    pair = pair_at(key)
    if "value" not in change:
        pair.entry_is(None, change.rev)
        if pair.bus is None:  # nobody misses it any more
            del pairs[key]
            await marks.good(change.path)
    elif change.value in (True, False):  # 0 and 1 will do
        if pair.entry_is(bool(change.value), change.rev, news=news) and pair.bus is not None:
            await to_bus(key)
    else:
        pair.entry_is_wrong(change.rev)
        await marks.bad(change.path, f"true or false is wanted, not {change.value!r}")


await _self.watch(base, min_depth=3, max_depth=3)
timer = await _self.timer(0)
ready = False
async for msg in _info:
    if msg is None:
        raise RuntimeError("too slow for the messages")  # a failure, so that we start again
    if isinstance(msg, _cls.ReadyMsg):
        if msg.msg >= 1 and not ready:
            ready = True
            await timer.run(await poll())
    elif isinstance(msg, _cls.TimerMsg):
        await timer.run(await poll())
    elif isinstance(msg, _cls.ChangeMsg):
        try:
            await changed(msg.msg, ready)
        except OwGone as error:
            await timer.run(await lost(error))
