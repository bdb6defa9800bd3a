"""A cluster in a box: NATS nodes and servers on this machine, and a network that can be broken.

For fault tests, and for `moat kv cluster`, with which users see fail-over. Every process is in the
background and known by id and time of beginning (`background`); everything is in one folder, so
that a later command, or another process, finds the cluster there and goes on with it. What servers
and NATS nodes say to each other goes through links of our own (`cluster_links`), which are cut and
healed without any rights, or through namespaces (`cluster_netns`); clients reach servers directly.

NATS nodes are called `nats1`, `nats2`, ..., servers `s1`, `s2`, ... All calls block: some for as
long as a process takes to start. From an event loop use `anyio.to_thread.run_sync`; `cut`, `split`
and `heal` take a few milliseconds. Several processes may use one cluster; they wait for each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from moat_kv.testing import (
    background,
    cluster_links,
    cluster_lock,
    cluster_netns,
    cluster_plan,
    cluster_start,
    nats,
    ports,
)

#: How many NATS nodes there may be: one, or as many as keep a majority when one is lost.
NODE_COUNTS = (1, 3, 5)
#: What is stopped may take so long by itself, in seconds.
END_S = 10.0
#: A process that is frozen has stopped by then, in seconds.
FREEZE_S = 20.0
_CONFIG = "config.yaml"


class ClusterError(RuntimeError):
    """What was asked of a cluster cannot be; the text says why."""


class NotThere(ClusterError):
    """There is no such cluster, or none of that name in it."""


class Cluster:
    """The cluster in a folder, whether it is there already or not.

    `environment`: by the names of servers, what their environments have beside this process's.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        environment: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.folder = folder
        self._environment = environment or {}

    # What is there ------------------------------------------------------------------------------

    @property
    def plan(self) -> cluster_plan.Plan:
        """What it consists of and what was done to it. Raises ClusterError if there is none."""
        found = self._load()
        if found is None:
            raise NotThere(f"there is no cluster in {self.folder}; `moat kv cluster up` starts one")
        return found

    @property
    def exists(self) -> bool:
        return self._load() is not None

    @property
    def servers(self) -> tuple[str, ...]:
        """The names of the servers, in order."""
        return tuple(each.name for each in self.plan.of_kind("server"))

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the NATS nodes, in order."""
        return tuple(each.name for each in self.plan.of_kind("nats"))

    @property
    def urls(self) -> tuple[str, ...]:
        """Of the servers, in order, for clients."""
        return tuple(each.url for each in self.plan.of_kind("server"))

    def url(self, name: str) -> str:
        return self._member(self.plan, name).url

    def state(self, name: str) -> background.State:
        """Whether the process of that name is up, frozen or dead."""
        plan = self.plan
        process = plan.processes.get(self._member(plan, name).name)
        return background.state(process) if process is not None else "dead"

    def pid(self, name: str) -> int:
        """Raises ClusterError if it does not run."""
        process = self.plan.processes.get(name)
        if process is None or background.state(process) == "dead":
            raise ClusterError(f"{name} does not run")
        return process.pid

    def log(self, name: str) -> pathlib.Path:
        """The file that it writes its log to."""
        return cluster_start.log(self.folder, name)

    def node_at(self, place: str) -> str | None:
        """The name of the NATS node that a server reaches at that `host:port`."""
        return next((each.target for each in self.plan.links if each.place == place), None)

    def leader(self) -> str | None:
        """The NATS node that leads the network's stream, by its own word."""
        return cluster_start.leader(self.plan)

    def has_whole_copies(self) -> bool:
        """Whether every NATS node has all of the stream, by the leader's word and by its own.

        NATS may take long over it after an outage. Until then the loss of another node is a second
        fault at the same time, and may leave no majority that has everything.
        """
        return cluster_start.have_whole_copies(self.plan)

    # Up and down --------------------------------------------------------------------------------

    def up(
        self,
        *,
        nodes: int = 3,
        servers: int = 3,
        first_port: int = 0,
        netns: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> bool:
        """Start it; returns when all serve. If there is one already, starts what is dead of it.

        `first_port`: of the first server, the others' follow; 0 takes free ones. `netns`: each has
        a network namespace of its own, and servers are reached by Unix sockets; Linux, and root.
        `settings`: what the servers' configuration file says. Returns whether anything had to be
        started. Raises ClusterError (nothing is left behind then, if there was nothing),
        NatsFailed if there is no nats-server.
        """
        if nodes not in NODE_COUNTS or servers < 1:
            raise ClusterError(f"{nodes} NATS nodes, {servers} servers: it takes 1, 3 or 5, and 1")
        nats.program()
        if netns:
            with _told():
                cluster_netns.check()
        with self._locked(make=True):
            plan = self._load()
            is_new = plan is None
            if plan is None:
                plan = self._new_plan(nodes, servers, first_port, netns)
                # YAML reads JSON; the user's own settings have no part in this.
                (self.folder / _CONFIG).write_text(json.dumps(settings or {}) + "\n")
                cluster_plan.lay_out(plan, self.folder)
            try:
                return self._start_all(plan)
            except BaseException:
                if is_new:
                    self._remove(self.plan)
                raise

    def down(self) -> None:
        """End all that is ours, and remove the folder. Raises ClusterError if there is none."""
        with self._locked():
            self._remove(self.plan)

    # One process --------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start what is dead, and wait until it serves. Raises ClusterError."""
        with self._locked():
            plan = self.plan
            wanted = [self._member(plan, name) for name in names]
            for each in wanted:
                if self.state(each.name) != "dead":
                    raise ClusterError(f"{each.name} runs already")
            self._start(plan, wanted)

    def stop(self, *names: str) -> None:
        """End them in good order, at the same time."""
        background.end(self._processes(names), limit_s=END_S)

    def kill(self, *names: str) -> None:
        """End them at once, as a crash would."""
        background.kill(self._processes(names))

    def freeze(self, *names: str) -> None:
        """They keep their connections and do nothing, until `thaw`."""
        processes = self._processes(names)
        for each in processes:
            background.send(each, signal.SIGSTOP)
        give_up_at = time.monotonic() + FREEZE_S
        while any(background.state(each) == "up" for each in processes):
            if time.monotonic() > give_up_at:
                raise ClusterError("a process does not freeze")
            time.sleep(0.005)

    def thaw(self, *names: str) -> None:
        for each in self._processes(names):
            background.send(each, signal.SIGCONT)

    # The network --------------------------------------------------------------------------------

    def cut(self, name: str, *others: str, one_way: bool = False) -> None:
        """Nothing passes between it and the others; none named: all. Nobody is told.

        `one_way`: what it sends is lost, and what is sent to it comes.
        """
        plan = self.plan
        self._member(plan, name)
        far = [self._member(plan, each).name for each in others] or [*plan.neighbours(name)]
        if one_way:
            self._cut(frozenset((name, each) for each in far))
        else:
            self._cut(cluster_plan.cut_between([name], far))

    def split(self, *sides: Sequence[str]) -> None:
        """Nothing passes between these sides; whoever is in none of them reaches all."""
        plan = self.plan
        cuts: frozenset[tuple[str, str]] = frozenset()
        for index, one in enumerate(sides):
            for name in one:
                self._member(plan, name)
            for other in sides[index + 1 :]:
                cuts |= cluster_plan.cut_between(one, other)
        self._cut(cuts)

    def _cut(self, cuts: frozenset[tuple[str, str]]) -> None:
        self._arrange(lambda plan: dataclasses.replace(plan, cuts=plan.cuts | cuts))

    def heal(self, *names: str, reset: bool = False) -> None:
        """All that was cut from these names reaches them again; none named: everybody everybody.

        What waited comes through. `reset`: their lines break instead, as if given up.
        """
        plan = self.plan
        healed = frozenset(self._member(plan, name).name for name in names or plan.names)

        def change(plan: cluster_plan.Plan) -> cluster_plan.Plan:
            left = frozenset(pair for pair in plan.cuts if not healed & set(pair))
            return dataclasses.replace(plan, cuts=left)

        self._arrange(change, reset=healed if reset else frozenset())

    def slow(self, delay_s: float = 0.0, *, hold_share: float = 0.0) -> None:
        """All links take this long, each way; a share of the chunks 0.2 to 1.2 s more. See `proxy`.

        No arguments: no more.
        """
        self._arrange(
            lambda plan: dataclasses.replace(plan, delay_s=delay_s, hold_share=hold_share)
        )

    def _arrange(
        self,
        change: Callable[[cluster_plan.Plan], cluster_plan.Plan],
        *,
        reset: frozenset[str] = frozenset(),
    ) -> None:
        with self._locked():
            changed = change(self.plan)
            if changed.netns and (reset or changed.delay_s or changed.hold_share):
                raise ClusterError("slow lines, and resets, are not to be had with namespaces")
            cluster_plan.save(changed, self.folder)
            with _told():
                if changed.netns:
                    cluster_netns.arrange(changed)
                else:
                    cluster_links.tell(changed, reset=reset)

    # Inside -------------------------------------------------------------------------------------

    def _load(self) -> cluster_plan.Plan | None:
        try:
            return cluster_plan.load(self.folder)
        except ValueError as exc:
            raise ClusterError(str(exc)) from exc

    def _member(self, plan: cluster_plan.Plan, name: str) -> cluster_plan.Member:
        try:
            return plan.member(name)
        except KeyError:
            known = ", ".join(plan.names)
            raise NotThere(f"there is no {name!r} in the cluster; there is: {known}") from None

    def _processes(self, names: Sequence[str]) -> list[background.Process]:
        """Those of these names. Raises ClusterError if one does not run."""
        plan = self.plan
        for name in names:
            self._member(plan, name)
            self.pid(name)
        return [plan.processes[name] for name in names]

    @contextlib.contextmanager
    def _locked(self, *, make: bool = False) -> Iterator[None]:
        """Nobody else changes it meanwhile."""
        if make:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(cluster_lock.locked(self.folder))
            except (FileNotFoundError, NotADirectoryError):
                raise NotThere(
                    f"there is no cluster in {self.folder}; `moat kv cluster up` starts one"
                ) from None
            yield

    def _new_plan(
        self, nodes: int, servers: int, first_port: int, netns: bool
    ) -> cluster_plan.Plan:
        if {each.name for each in self.folder.iterdir()} - {cluster_lock.FILE_NAME}:
            raise ClusterError(f"{self.folder} has other things in it; --dir takes another folder")
        if netns:
            prefix = cluster_netns.new_prefix()
            return cluster_plan.make_in_namespaces(nodes, servers, prefix, self.folder)
        for port in range(first_port, first_port + servers) if first_port else ():
            if not ports.is_free(port):
                raise ClusterError(f"something listens on port {port}; --port takes others")
        return cluster_plan.make(nodes, servers, first_port)

    def _start_all(self, plan: cluster_plan.Plan) -> bool:
        if plan.netns:
            with _told():
                cluster_netns.make(plan)
        dead = [each for each in plan.members if self.state(each.name) == "dead"]
        for kind in ("links", "nats"):
            self._start(self.plan, [each for each in dead if each.kind == kind])
        servers = [each for each in dead if each.kind == "server"]
        # The first makes the network; those that make it at the same time get in its way.
        self._start(self.plan, servers[:1])
        self._start(self.plan, servers[1:])
        return bool(dead)

    def _start(self, plan: cluster_plan.Plan, members: Sequence[cluster_plan.Member]) -> None:
        """Start these together, and wait until all are ready. Raises ClusterError."""
        environment = os.environ | {"MOAT_KV_CONFIG": str(self.folder / _CONFIG)}
        own = {each.name: self._environment.get(each.name, {}) for each in members}
        environments = {name: environment | dict(each) for name, each in own.items()}
        try:
            cluster_start.start(plan, members, self.folder, environments)
        except background.NotStarted as exc:
            raise ClusterError(str(exc)) from exc

    def _remove(self, plan: cluster_plan.Plan) -> None:
        """End everything, at once since all that it would keep goes too; remove what was made."""
        background.kill([*plan.processes.values()])
        if plan.netns:
            with _told():
                cluster_netns.remove(plan)
        for member in plan.members:
            shutil.rmtree(self.folder / member.name, ignore_errors=True)
        for name in (_CONFIG, cluster_plan.FILE_NAME):
            (self.folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What goes wrong with the network as a ClusterError."""
    try:
        yield
    except cluster_netns.NetnsFailed as exc:
        raise ClusterError(str(exc)) from exc
    except OSError as exc:
        raise ClusterError(f"the links do not answer: {exc} (`up` starts them)") from exc


@contextlib.contextmanager
def running(
    folder: pathlib.Path | None = None,
    *,
    environment: Mapping[str, Mapping[str, str]] | None = None,
    **options: Any,
) -> Iterator[Cluster]:
    """A cluster of one's own until the context ends; `options` as for `Cluster.up`.

    Without `folder` it is in a temporary one.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            made = tempfile.TemporaryDirectory(prefix="moat-kv-cluster-")
            folder = pathlib.Path(stack.enter_context(made)) / "box"
        cluster = Cluster(folder, environment=environment)
        cluster.up(**options)
        stack.callback(cluster.down)
        yield cluster
