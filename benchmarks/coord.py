"""Coordination: a lock taken and released, and events that are counted."""

from __future__ import annotations

import functools
import time
from typing import Any

from benchmarks import coord_redis, outcome, peers, rounds
from moat_kv import P
from moat_kv.coord import aio

OURS, REDIS, HASTY, PIPED = "moat-kv", "Redis", "Redis, not synced", "Redis, many at a time"
#: Of so many things events are counted.
THINGS = 100
#: How long a lock of Redis lives, in seconds.
TTL_S = 10.0


class Clicks(aio.Update):
    """Counts what is merged into it, and adds it to an entry at the end."""

    def merge(self, other: Clicks) -> None:
        self.doc["clicks"] += other.doc["clicks"]

    async def execute(self) -> None:
        client = self.process.asynchronous.client
        await client.patch(P("clicks") / self._id, "add", self.doc["clicks"])


async def lock(place: peers.Place) -> list[outcome.Figure]:
    """Taking and releasing a lock that nobody else wants."""
    calls = max(1, place.scale.calls // 3)
    with place.server() as server:
        async with (
            server.client() as client,
            aio.Process(client) as process,
            coord_redis.opened(place, synced=True) as redis,
            coord_redis.opened(place, synced=False) as hasty,
        ):

            async def ours(_number: int) -> None:
                async with process.lock("lock"):
                    pass

            contestants: dict[str, rounds.Round] = {
                OURS: lambda: rounds.round_trip(ours, calls),
            }
            for name, theirs in ((REDIS, redis), (HASTY, hasty)):
                if theirs is not None:
                    call = functools.partial(_redis_lock, theirs)
                    contestants[name] = functools.partial(rounds.round_trip, call, calls)
            series = await rounds.alternate(contestants, place.scale.rounds)
    peers_ = {REDIS: series.median(REDIS)} if REDIS in series else {}
    note = "three requests, of which two are durable writes; a fence and a place in the line"
    if HASTY in series:
        note += f"; a Redis that does not sync takes {1e3 * series.median(HASTY):.2f} ms"
    figure = outcome.Figure(
        what="lock and unlock", unit="s", ours=series.median(OURS), peers=peers_, note=note
    )
    return [figure]


async def _redis_lock(redis: Any, _number: int) -> None:
    async with redis.lock("lock", timeout=TTL_S):
        pass


async def count(place: peers.Place) -> list[outcome.Figure]:
    """Events a second that are counted, until their sums are stored."""
    events = 10 * place.scale.flight_calls
    with place.server() as server:
        async with (
            server.client() as client,
            aio.Process(client) as process,
            coord_redis.opened(place, synced=True) as redis,
        ):
            contestants: dict[str, rounds.Round] = {OURS: lambda: _our_rate(process, events)}
            if redis is not None:
                single = functools.partial(_redis_rate, redis, max(1, events // 100), 1)
                contestants[REDIS] = single
                many = functools.partial(_redis_rate, redis, events, place.scale.in_flight)
                contestants[PIPED] = many
            series = await rounds.alternate(contestants, place.scale.rounds)
    peers_ = {REDIS: series.median(REDIS)} if REDIS in series else {}
    note = f"of {THINGS} things, by one process through an LruCache, ends included"
    if PIPED in series:
        note += f"; HINCRBY {place.scale.in_flight} at a time: {series.median(PIPED):.0f} /s"
    figure = outcome.Figure(
        what="events counted", unit="1/s", ours=series.median(OURS), peers=peers_, note=note
    )
    return [figure]


async def _our_rate(process: aio.Process, events: int) -> float:
    cache = aio.LruCache[Clicks]()
    began = time.perf_counter()
    for number in range(events):
        key = number % THINGS
        await cache.set(key, Clicks(process, key, doc={"clicks": 1}))
    await cache.expire_all()
    return events / (time.perf_counter() - began)


async def _redis_rate(redis: Any, events: int, in_flight: int) -> float:
    async def call(number: int) -> None:
        await redis.hincrby("clicks", number % THINGS, 1)

    began = time.perf_counter()
    if in_flight == 1:
        for number in range(events):
            await call(number)
        return events / (time.perf_counter() - began)
    for start in range(0, events, in_flight):
        pipeline = redis.pipeline(transaction=False)
        for number in range(start, min(events, start + in_flight)):
            pipeline.hincrby("clicks", number % THINGS, 1)
        await pipeline.execute()

    return events / (time.perf_counter() - began)
