"""Clients that write to a network without pause, while fault commands do bad things to it.

Plain sets and deletions of keys that each client has for itself, sets of keys that all of them
share, compare-and-sets. What they asked and were answered is in the box's recorder.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator

import anyio

from moat_kv import errors, open_client
from tests.faults import recording
from tests.faults.network_box import Box

#: Below these are all keys that are written here.
PLACES = ("own", "shared")
#: How many clients write at each server, and how many keys each of them has.
CLIENTS = 2
OWN_KEYS = 40
SHARED_KEYS = 5
#: A client pauses so long between two writes on average, in seconds: this sets the rate.
PAUSE_S = 0.01


@contextlib.asynccontextmanager
async def writing(box: Box, seed: int, *, pause_s: float = PAUSE_S) -> AsyncIterator[None]:
    """They write for as long as the context lasts."""
    async with anyio.create_task_group() as tasks:
        for number in range(CLIENTS * len(box.servers)):
            tasks.start_soon(write, box, number, random.Random(seed + number), pause_s)
        yield
        tasks.cancel_scope.cancel()


async def write(box: Box, number: int, chance: random.Random, pause_s: float = PAUSE_S) -> None:
    """One client's work, until cancelled; it goes to its own server first."""
    home = number % len(box.servers)
    urls = [*box.urls[home:], *box.urls[:home]]
    serial = 0
    while True:
        try:
            # Another name for each line: an operation of a broken one may still take effect.
            serial += 1
            async with open_client(urls, reconnect=False, request_timeout_s=20.0) as client:
                name = f"c{number}.{serial}@{client.server.node}"
                line = recording.Recorded(client, box.recorder, name, strict=False)
                await _write_on(line, f"{number}.{serial}", number, chance, pause_s)
        except (errors.CannotConnect, errors.Disconnected, recording.LineGone):
            await anyio.sleep(0.1)


async def _write_on(
    line: recording.Recorded, label: str, number: int, chance: random.Random, pause_s: float
) -> None:
    count = 0
    while True:
        count += 1
        value = f"{label}.{chance.getrandbits(32):08x}.{count}"
        own = f"own.c{number}.k{chance.randrange(OWN_KEYS)}"
        match chance.randrange(10):
            case 0:
                await line.delete(own)
            case 1 | 2:
                await line.write(f"shared.k{chance.randrange(SHARED_KEYS)}", value)
            case 3:
                await line.write(own, value, expect=line.known.get(own, 0))
            case _:
                await line.write(own, value)
        await anyio.sleep(pause_s * chance.random() * 2)


def counts(box: Box, took_s: float) -> str:
    """How many were answered, and how."""
    outcomes = Counter(one.outcome for one in box.recorder.operations)
    return (
        f"{outcomes['ok']} writes answered, {outcomes['pending']} pending"
        f" ({outcomes.total() / took_s:.0f} a second), {outcomes['failed']} refused,"
        f" {outcomes['unknown']} unknown"
    )
