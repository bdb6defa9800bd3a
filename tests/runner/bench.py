"""A server, a desk and any number of runner nodes, all in the test's process."""

from __future__ import annotations

import textwrap
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from moat_kv import Client, P, Path, WatchEvent, open_client
from moat_kv.code import CodeRoot
from moat_kv.config import Config, Places, RunnerConfig
from moat_kv.testing.server import RunningServer, running_server
from moat_kv_runner import commands, node_facts, readiness, run, serving
from moat_kv_runner.job import JobState, parse_state

#: How long anything may take before a test fails, in seconds.
LIMIT_S = 30.0
GROUP = Path("default")
#: Where scripts run that do not say; the fixture `both_ways` changes it.
ISOLATE: str = "process"


class Node:
    """A runner with a client of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client: Client
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()

    async def stop(self) -> None:
        """End it as SIGTERM does, and wait for that."""
        self.scope.cancel()
        await self.ended.wait()


class Bench:
    """What the tests of the runner work on."""

    def __init__(
        self, server: RunningServer | None, desk: Client, tasks: anyio.abc.TaskGroup
    ) -> None:
        self._server = server
        self.desk = desk
        self.tasks = tasks
        self.places = Places()
        self.code: CodeRoot

    @property
    def server(self) -> RunningServer:
        """The one in this process."""
        assert self._server is not None
        return self._server

    async def node(
        self,
        name: str = "n1",
        *,
        kinds: Collection[str] = ("any", "at", "all"),
        nodes: int | None = None,
        queue: int = 100,
        url: str | Sequence[str] | None = None,
        ttl_s: float | None = 10.0,
        grace_s: float | None = 0.5,
        facts: node_facts.NodeFacts | None = None,
        on_stuck: serving.OnStuck | None = None,
        isolate: str | None = None,
    ) -> Node:
        """Start a runner; returns when it runs jobs. `url`: of a relay, or of several servers."""
        node = Node(name)

        async def live(*, task_status: anyio.abc.TaskStatus[str]) -> None:
            try:
                with node.scope:
                    config = Config(runner=RunnerConfig(queue=queue))
                    opened = open_client(url or self.server.url, name=name, config=config)
                    async with opened as node.client:
                        await run(
                            node.client,
                            kinds=kinds,
                            group=GROUP,
                            name=name,
                            nodes=nodes,
                            ttl_s=ttl_s,
                            grace_s=grace_s,
                            facts=facts,
                            on_stuck=on_stuck,
                            isolate=isolate or ISOLATE,
                            task_status=task_status,
                        )
            finally:
                node.ended.set()

        await self.tasks.start(live)
        return node

    async def store(
        self, name: str, text: str, *, is_async: bool | None = True, **facts: Any
    ) -> Path:
        """Store a procedure. One that is async runs in the same kind of event loop as the test."""
        if is_async:
            facts.setdefault("backend", readiness.backend())
        await self.code.add(name, code=textwrap.dedent(text), is_async=is_async, **facts)
        return P(name)

    async def job(
        self,
        text: str | None = None,
        *,
        path: str = "job",
        kind: str = "any",
        node: str = "n1",
        is_async: bool | None = True,
        variables: Collection[str] = (),
        target: float | None = 0.0,
        **attributes: Any,
    ) -> Path:
        """Store a procedure and a job that runs it, due `target` seconds from now.

        Returns where the job's entry is.
        """
        if text is not None:
            code = f"code.{path}"
            attributes["code"] = await self.store(
                code, text, is_async=is_async, variables=list(variables)
            )
        if target is not None:
            attributes["target"] = time.time() + target
        place = commands.job_path(self.places, kind, GROUP, P(path), node=node)
        await self.desk.set(place, attributes)
        return place

    def state_path(self, path: str = "job", *, kind: str = "any", node: str = "n1") -> Path:
        return commands.state_path(self.places, kind, GROUP, P(path), node=node)

    def claim_path(self, path: str = "job", *, kind: str = "any", node: str = "n1") -> Path:
        return commands.claim_path(self.places, kind, GROUP, P(path), node=node)

    async def state(
        self,
        when: Callable[[JobState], Any] = lambda state: not state.running and state.stopped,
        path: str = "job",
        *,
        kind: str = "any",
        node: str = "n1",
    ) -> JobState:
        """A job's state as soon as it is so; by default, that a run has ended."""
        place = self.state_path(path, kind=kind, node=node)
        value = await self.value(place, lambda value: when(parse_state(value)))
        return parse_state(value)

    async def value(self, path: Path, when: Callable[[Any], Any] = lambda value: True) -> Any:
        """An entry's value as soon as there is one for which this holds."""
        last: Any = "nothing"
        try:
            with anyio.fail_after(LIMIT_S):
                async with self.desk.watch(path, fetch=True, max_depth=0) as watch:
                    async for event in watch:
                        if isinstance(event, WatchEvent) and "value" in event:
                            last = event.value
                            if when(last):
                                return last
        except TimeoutError:
            raise AssertionError(f"{path} stays {last!r}") from None
        raise AssertionError("the watch has ended")

    async def gone(self, path: Path) -> None:
        """Until an entry has no value."""
        with anyio.fail_after(LIMIT_S):
            async with self.desk.watch(path, fetch=True, max_depth=0) as watch:
                is_there = False
                async for event in watch:
                    if isinstance(event, WatchEvent):
                        is_there = "value" in event
                    if not is_there:
                        return

    async def get(self, text: str) -> Any:
        return (await self.desk.get(P(text))).get("value")

    def end_session(self, node: Node) -> None:
        """What the server does when a node has died."""
        sessions = self.server.server.sessions
        for session in list(sessions._live.values()):
            if (
                session.connection is not None
                and session.connection.client_name == node.client.name
            ):
                sessions.end(session, "the test ends it")


@asynccontextmanager
async def bench(*nodes: str, tcp: bool = False, **options: Any) -> AsyncIterator[Bench]:
    """A server with these runners, all of which are stopped at the end. `tcp`: for relays."""
    async with running_server(tcp=tcp) as server, open_client(server.url) as desk:
        async with anyio.create_task_group() as tasks:
            made = Bench(server, desk, tasks)
            made.code = await CodeRoot.as_handler(desk)
            for name in nodes:
                await made.node(name, **options)
            yield made
            tasks.cancel_scope.cancel()


__all__ = ["GROUP", "LIMIT_S", "Bench", "Node", "bench"]


async def result_of(text: str, **attributes: Any) -> Any:
    """What a script returns on a single node; its failure fails the test."""
    async with bench("n1") as b:
        return await returned(b, text, **attributes)


async def returned(b: Bench, text: str, **attributes: Any) -> Any:
    """The same, as a job of this bench."""
    await b.job(text, delay=1000, **attributes)
    state = await b.state()
    assert state.reason == "done"
    return state.result
