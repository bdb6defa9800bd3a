"""The plot: start everything, run a job of each kind, kill a node, see what becomes of it, sum up.

The time limits are counted from the server's start; whatever has not been seen by then is told in
the summary, which is read back from the tree.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence

import anyio
import anyio.abc
import anyio.to_thread
import asyncclick as click

import moat_kv
from moat_kv import config
from moat_kv_cli import command, failures, manifest
from moat_kv_cli import main as main_module
from moat_kv_cli.demo import children, findings, network, seen, show

NODES = ("alpha", "beta")

#: Seconds since the server's start: by when all kinds must have been seen; before when no node is
#: killed, so that people see it run; by when the rest must have been seen.
ALL_SEEN_S = 60.0
KILL_S = 7.0
MOVED_S = 90.0
#: With several servers: by when, after one was killed, the job must have gone on, in seconds.
WENT_ON_S = 40.0
#: How long the last picture stays, in seconds.
LINGER_S = 2.0

EXAMPLES = pathlib.Path(__file__).resolve().parents[3] / "examples"


@click.command(
    cls=command.Command,
    example="./dev demo\n./dev demo --keep        # look around with `moat kv` afterwards\n"
    "./dev demo --cluster     # three servers, of which one is killed",
)
@click.option("--keep", is_flag=True, help="Leave it running at the end, and say how to look.")
@click.option(
    "--bus",
    type=click.Choice(["auto", "owserver", "simulated"]),
    default="auto",
    help="The 1-wire bus; owserver where it is installed, else a simulated one.",
)
@click.option(
    "--cluster", is_flag=True, help="Three servers on a network; one of them is killed, too."
)
@click.option("--plain", is_flag=True, help="Lines, even on a terminal.")
async def demo(keep: bool, bus: str, cluster: bool, plain: bool) -> int:
    """A server, two nodes, a bus and three kinds of job, live; ends by itself."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="moat-kv-demo-"))
    family = children.Children(folder)
    received: list[int] = []
    kept = False
    try:
        found: list[findings.Finding] = []
        async with anyio.create_task_group() as tasks:
            await tasks.start(_end_on_signal, received, tasks.cancel_scope)
            with show.opened(live=False if plain else None) as screen:
                found = await _play(family, bus, screen, cluster)
            tasks.cancel_scope.cancel()
        if received:
            print(f"demo: ended by {signal.Signals(received[0]).name}", flush=True)
            return command.INTERRUPTED if signal.SIGINT in received else command.FAILED
        _sum_up(found)
        if keep:
            _tell_how_to_look(family)
            kept = True
    finally:
        if not kept:
            family.end_all()
            shutil.rmtree(folder, ignore_errors=True)
    return command.FINE if all(each.good for each in found) else command.FAILED


async def _end_on_signal(
    received: list[int],
    scope: anyio.CancelScope,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            received.append(number)
            scope.cancel()


# The plot ---------------------------------------------------------------------------------------


async def _play(
    family: children.Children, bus_kind: str, screen: show.Screen, has_network: bool
) -> list[findings.Finding]:
    """All scenes, and what is found in the tree after them."""
    bus, port = await anyio.to_thread.run_sync(family.bus, bus_kind)
    screen.say(f"1-wire bus: {bus} on port {port}")
    began = anyio.current_time()
    start = family.servers if has_network else family.server
    url = await anyio.to_thread.run_sync(start)
    screen.say(f"server{'s' if has_network else ''}: {url}, all data in {family.folder}")
    async with moat_kv.open_client(url.split(), config=config.Config()) as client:
        watched = seen.Seen(client, await config.load_places(client))
        async with anyio.create_task_group() as tasks:
            await tasks.start(watched.follow)
            tasks.start_soon(watched.follow_group)
            tasks.start_soon(_draw, screen, watched, family)
            play = _Play(family, screen, watched, began, port)
            killed = await play.scenes()
            more = [await play.lose_server(family.network)] if family.network else []
            tasks.cancel_scope.cancel()
        screen.draw(watched)
        return await findings.read_back(client, NODES, killed) + more


async def _draw(screen: show.Screen, watched: seen.Seen, family: children.Children) -> None:
    """Keep the screen current, and notice a child that ended by itself."""
    while True:
        screen.draw(watched)
        lost = family.unexpected_end()
        if lost is not None:
            raise command.Refused(f"{lost.name} ended by itself:\n{lost.last_lines()}")
        await anyio.sleep(0.1)


class _Play:
    """The scenes, one after the other. `began`: by the event loop's clock."""

    def __init__(
        self,
        family: children.Children,
        screen: show.Screen,
        watched: seen.Seen,
        began: float,
        bus_port: int,
    ) -> None:
        self._family = family
        self._screen = screen
        self._seen = watched
        self._began = began
        self._bus_port = bus_port

    async def scenes(self) -> str | None:
        """Returns the name of the node that was killed, if it came to that."""
        nodes = {name: self._family.node(name, len(NODES)) for name in NODES}
        self._screen.say(f"nodes: {', '.join(NODES)}, in one group that wants {len(NODES)} of them")
        stored = [self._read("onewire"), self._read("demo")]
        for each in stored:
            await self._store(each, with_jobs=False)
        self._screen.say("the example's modules and procedures are stored")
        watched, until = self._seen, self._began + ALL_SEEN_S
        if not await watched.until(lambda: set(watched.members) == set(NODES), until):
            return None
        jobs = [job for each in stored for job in each.jobs]
        await self._start([job for job in jobs if job.run != "at"], node="")
        if not await watched.until(lambda: self._holder() is not None, until):
            return None
        holder = self._holder()
        other = next(name for name in NODES if name != holder)
        self._screen.say(f"the 1-wire bus is taken to be wired to {other}")
        await self._start([job for job in jobs if job.run == "at"], node=other)
        await watched.until(self._all_seen, until)
        if self._screen.is_live:
            await anyio.sleep_until(self._began + KILL_S)
        holder = self._holder()
        if holder is None:
            return None
        self._screen.say(f"killing {holder} (kill -9 {nodes[holder].pid})")
        nodes[holder].kill()
        await watched.until(lambda: self._moved(holder), self._began + MOVED_S)
        if self._screen.is_live:
            await anyio.sleep(LINGER_S)
        return holder

    async def lose_server(self, servers: network.Network) -> findings.Finding:
        """Kill the server that all are connected to, and see all jobs go on."""
        before = self._polls()
        name = await servers.busiest()
        self._screen.say(
            f"killing {name}, to which all are connected (kill -9 {servers.pids[name]})"
        )
        at = time.time()
        await anyio.to_thread.run_sync(servers.kill, name)

        def has_gone_on() -> bool:
            return bool(self._seen.value(seen.RADIO).get("at", 0.0) > at)

        if before is None or not await self._seen.until(
            has_gone_on, anyio.current_time() + WENT_ON_S
        ):
            return network.finding(name, before, None)
        # A restart would come now, when the run's claim has not been renewed.
        await anyio.sleep(LINGER_S)
        return network.finding(name, before, self._polls())

    def _polls(self) -> network.Polls | None:
        value = self._seen.value(seen.RADIO)
        if self._holder() is None:
            return None
        return network.Polls(
            node=value["node"],
            fence=value["fence"],
            count=value["count"],
            runs=self._seen.runs(value["node"]),
        )

    def _read(self, name: str) -> manifest.Manifest:
        return manifest.read(EXAMPLES / name)

    async def _store(self, found: manifest.Manifest, *, with_jobs: bool) -> None:
        await manifest.store(
            self._seen.client,
            found,
            node="",
            group=seen.GROUP_NAME,
            with_jobs=with_jobs,
        )

    async def _start(self, jobs: Sequence[manifest.Job], *, node: str) -> None:
        """Store these jobs, pointed at this bus, and quicker than at home."""
        quick = [
            dataclasses.replace(job, node=node or None, value=self._tuned(job)) for job in jobs
        ]
        await self._store(manifest.Manifest(jobs=tuple(quick)), with_jobs=True)

    def _tuned(self, job: manifest.Job) -> dict[str, object]:
        data = dict(job.value.get("data") or {})
        if job.run == "at":
            data |= {"host": "127.0.0.1", "port": self._bus_port}
        if job.value["code"][0] == "onewire":
            data["interval_s"] = 1.0
        return {**job.value, "data": data}

    # What has been seen -------------------------------------------------------------------------

    def _holder(self) -> str | None:
        """The node that runs the any-node job."""
        value = self._seen.value(seen.RADIO)
        return value.get("node") if value.get("node") in NODES else None

    def _all_seen(self) -> bool:
        watched = self._seen
        read = [job for job in watched.job("at", seen.READ_JOB) if isinstance(job.result, float)]
        loads = {str(path[0]) for path in watched.below(seen.LOAD)}
        return bool(
            read
            and watched.sensors
            and self._holder() is not None
            and loads >= set(NODES)
            and watched.group_state == "complete"
        )

    def _moved(self, killed: str) -> bool:
        holder = self._holder()
        return holder not in (None, killed) and self._seen.group_state == "detached"


# The end ----------------------------------------------------------------------------------------


def _sum_up(found: Sequence[findings.Finding]) -> None:
    print("\nread back from the tree:")
    width = max(len(each.name) for each in found)
    for each in found:
        print(f"  {'ok    ' if each.good else 'FAILED'}  {each.name:<{width}}  {each.text}")
    bad = [each.name for each in found if not each.good]
    print(f"demo: not seen: {', '.join(bad)}" if bad else "demo: all was seen")


def _tell_how_to_look(family: children.Children) -> None:
    running = family.running()
    print(
        f"""
it is still running; to look around:
  export PATH={pathlib.Path(sys.executable).parent}:$PATH MOAT_KV_URL='{family.url}'
  moat kv data home list -r
  moat kv run info
  moat kv error list
  moat kv data home watch
its logs are in {family.folder}
to end it: kill {" ".join(map(str, running.values()))}; rm -r {family.folder}"""
    )


def main() -> None:
    """The process's entry."""
    debug = "--debug" in sys.argv
    try:
        code = anyio.run(_main)
    except KeyboardInterrupt:
        code = command.INTERRUPTED
    except (Exception, BaseExceptionGroup) as exc:
        code = main_module.report(failures.root_cause(exc), debug=debug, whole=exc)
    sys.exit(code)


async def _main() -> int:
    code: int = await demo.main(
        sys.argv[1:], prog_name="./dev demo", standalone_mode=False, obj=command.Invocation()
    )
    return code
