"""Servers on a log from which each can be cut off, and a runner at each, in the test's process."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from moat_kv import Client, P, Path, open_client
from moat_kv.code import CodeRoot
from moat_kv.config import Places
from moat_kv_runner import commands, node_facts, readiness, roots, run
from moat_kv_runner.job import JobState, parse_state
from tests.runner.bench import GROUP, LIMIT_S
from tests.server import network
from tests.server.network import Network, Site

#: A session lasts while its process gets no time to run for as long as four fifths of this.
TIMES = dataclasses.replace(network.TIMES, lease_s=2.4, ttl_s=4.0, grace_s=3.0, silent_s=1.6)

#: Counts below its job's name and its runner's, and says at its end what its calls come to then.
COUNTER = """
import anyio, os
from moat_kv import errors
here = _P("count") / _self.path[-1] / _self.node
run = f"{os.getpid()}-{id(_info)}"
n = 0
try:
    while True:
        n += 1
        await _client.set(here, {"n": n, "fence": _self.fence, "run": run})
        await anyio.sleep(0.02)
finally:
    with anyio.CancelScope(shield=True):
        try:
            await _client.set(_P("late") / _self.path[-1] / _self.node, 1)
        except _cls.LostClaim as exc:
            with open(ends, "a") as file:
                file.write(f"{_self.path[-1]} {_self.node} {exc}\\n")
        except errors.MoatKvError:
            pass
"""

#: Counts below its job's name and this runner's, with the claim that its writes carry.
QUICK = """
import os, time
for n in range(100_000):
    fence = _client.asynchronous.binding.fence
    value = {"n": n, "fence": fence[1] if fence else 0, "run": os.getpid()}
    _client.set(_P("count") / "j" / "n1", value)
    time.sleep(0.02)
"""


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Wait until a condition holds; what it says then."""
    with anyio.fail_after(LIMIT_S):
        while not (found := await condition()):
            await anyio.sleep(0.02)
    return found


class Place:
    """A server, somebody who looks at it, and its runner."""

    def __init__(self, name: str, site: Site, desk: Client) -> None:
        self.name = name
        self.site = site
        self.desk = desk

    async def seen(self, job: str, name: str | None = None) -> Any:
        """What a runner's script has written last, as this server shows it: `n`, `fence`, `run`."""
        found = await self.desk.get(P("count") / job / (name or self.name))
        return found.value if "value" in found else None

    async def goes_on(self, job: str, name: str | None = None) -> Any:
        """Wait until that runner's script has counted further; what it has written."""
        before = await self.seen(job, name)

        async def has_counted() -> Any:
            now = await self.seen(job, name)
            return now if now is not None and now != before else None

        return await until(has_counted)

    async def is_still(self, job: str, name: str | None = None, *, for_s: float = 0.5) -> bool:
        """Whether a script does not count for a while."""
        before = await self.seen(job, name)
        await anyio.sleep(for_s)
        return bool(await self.seen(job, name) == before)

    async def runs_apart(self, job: str) -> Any:
        """Wait until its runner runs the job without a claim."""

        async def is_apart() -> Any:
            now = await self.seen(job)
            return now if now is not None and not now.fence else None

        await until(is_apart)
        return await self.goes_on(job)

    async def state(self, job: str, kind: str = "any") -> JobState:
        path = commands.state_path(Places(), kind, GROUP, P(job), node=self.name)
        return parse_state((await self.desk.get(path)).get("value"))

    async def part_state(self, job: str, name: str) -> JobState:
        found = await self.desk.get(roots.part_below(Places(), GROUP) / name + P(job))
        return parse_state(found.get("value"))

    async def holder(self, job: str) -> str | None:
        found = await self.desk.get(commands.claim_path(Places(), "any", GROUP, P(job)))
        return str(found.value.node) if "value" in found else None

    async def held_by(self, job: str, name: str) -> Any:
        """Wait until that runner has the claim, and its script writes under one."""

        async def is_held() -> bool:
            now = await self.seen(job, name)
            return await self.holder(job) == name and now is not None and now.fence > 0

        await until(is_held)
        return await self.goes_on(job, name)

    async def settled(self, job: str, name: str) -> str:
        """Wait until it is decided who goes on with what a runner ran without a claim."""

        async def decided() -> Any:
            return (await self.part_state(job, name)).settled

        return str(await until(decided))


class Fleet:
    """All places."""

    def __init__(self, folder: pathlib.Path, tasks: anyio.abc.TaskGroup) -> None:
        self.ends = folder / "ends.txt"
        self.tasks = tasks
        self.places: list[Place] = []

    async def settings(self, **facts: Any) -> None:
        """The group's."""
        await self.places[0].desk.set(Places().run / "any" + GROUP, facts)

    async def job(
        self,
        name: str,
        text: str = COUNTER,
        *,
        kind: str = "any",
        node: str = "",
        is_async: bool | None = True,
        **facts: Any,
    ) -> None:
        """Store a job and its code, through the first server; it is due."""
        desk = self.places[0].desk
        code = await CodeRoot.as_handler(desk)
        backend = readiness.backend() if is_async else None
        await code.add(name, code=text, is_async=is_async, backend=backend)
        value = {"code": P(name), "target": 1.0, "delay": 0.1, "data": {"ends": str(self.ends)}}
        where = commands.job_path(Places(), kind, GROUP, P(name), node=node)
        await desk.set(where, {**value, **facts})

    async def runner(
        self, place: Place, name: str = "", *, weight: float = 1.0, isolate: str = "inline"
    ) -> anyio.CancelScope:
        """Start one at that place; returns when it runs jobs, with what ends it."""
        scope = anyio.CancelScope()

        async def live(*, task_status: anyio.abc.TaskStatus[str]) -> None:
            with scope:
                async with open_client(place.site.url, name=name or place.name) as client:
                    await run(
                        client,
                        group=GROUP,
                        name=name or place.name,
                        facts=node_facts.NodeFacts(weight=weight),
                        isolate=isolate,
                        task_status=task_status,
                    )

        await self.tasks.start(live)
        return scope

    def told(self) -> dict[tuple[str, str], str]:
        """What scripts were told at their ends, by job and runner."""
        lines = self.ends.read_text().splitlines() if self.ends.exists() else []
        words = [line.split(" ", 2) for line in lines]
        return {(job, node): text for job, node, text in words}


@asynccontextmanager
async def fleet(folder: pathlib.Path, *names: str) -> AsyncIterator[Fleet]:
    """Servers that see each other, with a desk at each; runners are started by the test."""
    net = Network(folder)
    async with AsyncExitStack() as stack:
        sites = [await stack.enter_async_context(net.server(each, times=TIMES)) for each in names]
        for site in sites:
            while len(site.server.presence.peers) < len(names) - 1:
                await anyio.sleep(0.01)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        made = Fleet(folder, tasks)
        for name, site in zip(names, sites, strict=True):
            desk = await stack.enter_async_context(open_client(site.url, name=f"desk {name}"))
            made.places.append(Place(name, site, desk))
        yield made
        for place in made.places:
            place.site.heal()
        tasks.cancel_scope.cancel()


def below(job: str) -> Path:
    """Where a job's scripts count."""
    return P("count") / job
