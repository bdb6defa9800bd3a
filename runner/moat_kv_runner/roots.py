"""Where jobs are, for each kind of runner: mirrors of jobs, with their states and claims beside.

`runner.run` makes one for each kind that it serves; as a library, `await AnyRunnerRoot.as_handler(
client, subpath=P("default"), code=cr)` does both: it mirrors the group's jobs and runs them, for as
long as the client lives. A root keeps a `supervision.Supervisor` for each job while it is served.
"""

from __future__ import annotations

import logging
import socket
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import anyio
import anyio.abc

from moat_kv import config, errors
from moat_kv.client.client import Client
from moat_kv.client.mirror import ClientRoot
from moat_kv.code.procedures import CodeRoot
from moat_kv.path import Path
from moat_kv_runner import apart, claims, execution, group_settings, job, serving, supervision
from moat_kv_runner.children import process_run

logger = logging.getLogger(__name__)

AnyRun = execution.Run | process_run.ProcessRun

DEFAULT_GROUP = Path("default")


#: The length of a runner's name, in characters; the server's limit for members of groups.
NAME_LIMIT = 200


def runner_name(client: Client, name: str | None = None) -> str:
    """The name given, else the configuration's, else the host's. Raises BadConfig."""
    name = name or client.config.runner.name or socket.gethostname()
    # As in paths, so that a name is the same wherever it is found.
    name = unicodedata.normalize("NFC", name)
    if name.isdigit():
        raise errors.BadConfig("runner.name", f"{name} is a bare number; call it node{name}, say")
    if not name.isprintable() or name != name.strip() or name.startswith("-"):
        raise errors.BadConfig("runner.name", f"{name!a} can be no name")
    if len(name) > NAME_LIMIT:
        raise errors.BadConfig("runner.name", f"longer than {NAME_LIMIT} characters")
    return name


def part_below(places: config.Places, group: Path) -> Path:
    """Where the states of a group's runs without a claim are; below it the runner, then the job."""
    return places.state / apart.KIND + group


class JobRoot(ClientRoot):
    """The jobs of one kind in one group. Use one of the subclasses."""

    child_type = job.JobEntry

    kind: ClassVar[str] = ""
    #: Every node runs each job, with a state of its own.
    every_node: ClassVar[bool] = False

    def __init__(self, client: Client, path: Path, *, name: str, nodes: int | None) -> None:
        super().__init__(client, path)
        #: The runner's name.
        self.runner = name
        self._nodes = nodes
        self.states: job.StateRoot
        self.claims: claims.ClaimRoot
        #: Where jobs ran without a claim; None where only one runner may have them anyway.
        self.parts: apart.PartRoot | None = None
        self._is_served = False
        # Parsed at the first look.
        self._settings: group_settings.GroupSettings | None = None
        # What was logged of what is wrong with them.
        self._told: tuple[str, ...] = ()
        self._service: serving.Service | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._supervisors: dict[Path, supervision.Supervisor] = {}
        #: How many jobs each runner has.
        self.held: Counter[str] = Counter()
        # Who has which.
        self._holders: dict[Path, str] = {}
        #: Runs whose script does not end though it was told to; not begun anew before.
        self.left_behind: dict[Path, AnyRun] = {}

    @classmethod
    def below(cls, place: Path, group: Path, name: str) -> Path:
        """The group's subtree of this kind, below the place of jobs."""
        return place / cls.kind + group

    @classmethod
    def state_below(cls, place: Path, group: Path, name: str) -> Path:
        """The same below the place of states, or of claims."""
        return cls.below(place, group, name)

    @classmethod
    async def as_handler(
        cls,
        client: Client,
        *,
        subpath: Path = DEFAULT_GROUP,
        places: config.Places | None = None,
        path: Path | None = None,
        code: CodeRoot | None = None,
        name: str | None = None,
        nodes: int | None = None,
        serve: bool = True,
        **options: Any,
    ) -> Self:
        """Mirror the jobs of the group `subpath`, and run them under this name.

        `nodes` is N, how many runners make the group complete; None: as the group's settings say.
        `serve` False: only mirror. Raises NameTaken if another runner of this kind has the name.
        """
        places = places or await config.load_places(client)
        name = runner_name(client, name)
        root = await super().as_handler(
            client,
            path=path if path is not None else cls.below(places.run, subpath, name),
            subpath=Path(),
            name=name,
            nodes=nodes,
            **options,
        )
        if root.runner != name:
            raise errors.NameTaken("client's runner in this group", root.runner)
        root.states = await job.StateRoot.as_handler(
            client, path=cls.state_below(places.state, subpath, name)
        )
        root.claims = await claims.ClaimRoot.as_handler(
            client, path=cls.state_below(places.claim, subpath, name)
        )
        if cls.kind == "any":
            root.parts = await apart.PartRoot.as_handler(client, path=part_below(places, subpath))
        if serve and not root._is_served:
            root._is_served = True
            try:
                service = await serving.Service.make(
                    client, [root], name=name, group=subpath, places=places, code=code
                )
                await client.task_group.start(service.serve)
            except BaseException:
                root._is_served = False
                raise
        return root

    # The group's settings -----------------------------------------------------------------------

    @property
    def settings(self) -> group_settings.GroupSettings:
        if self._settings is None:
            self._settings = group_settings.parse(self.value)
        return self._settings

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What the group says for all its jobs."""
        return self.settings.defaults

    @property
    def nodes(self) -> int | None:
        """N: the runner's own, else the group's, else None."""
        return self._nodes or self.settings.nodes

    def _tell_problems(self) -> None:
        """Log what is wrong with the settings, each once until it is mended."""
        problems = self.settings.problems
        for problem in problems:
            if problem not in self._told:
                text = "the settings of the group, %s: %s; this one does not count"
                logger.warning(text, self.base, problem)
        self._told = problems

    # Being served -------------------------------------------------------------------------------

    async def supervise(
        self,
        service: serving.Service,
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the jobs, for as long as the service's session lives."""
        listeners = (self.states.listeners, self.claims.listeners)
        if self.parts is not None:
            self.parts.listeners.append(self._part_changed)
        try:
            async with anyio.create_task_group() as self._tasks:
                self._service = service
                self._tell_problems()
                self._keep_runs(service)
                for each in listeners:
                    each.append(self._concerns)
                # Also the states of jobs that were deleted while nobody served them.
                roots = (self, self.states, self.claims)
                for path in {entry.path for root in roots for entry in root.all_children}:
                    self._concerns(path)
                for entry in self.parts.all_children if self.parts is not None else ():
                    self._part_changed(entry.path)
                task_status.started()
                try:
                    await anyio.sleep_forever()
                finally:
                    # Those that end now are not begun anew.
                    self._tasks = None
                    for each in listeners:
                        each.remove(self._concerns)
                    if self.parts is not None:
                        self.parts.listeners.remove(self._part_changed)
        finally:
            self._supervisors.clear()
            self._holders.clear()
            self.held.clear()

    def _part_changed(self, path: Path) -> None:
        self._concerns(path[1:])

    def _concerns(self, path: Path) -> None:
        """Something about the job at this path has changed."""
        self._count(path)
        supervisor = self._supervisors.get(path)
        if supervisor is not None:
            supervisor.wake()
        elif self._tasks is not None and self._service is not None and path:
            try:
                supervisor = supervision.Supervisor(self, self._service, path)
            except errors.BadPath as exc:
                # The places of states and claims are longer than that of jobs.
                logger.error("%s: cannot be run: %s", self.base + path, exc)
                return
            if not supervisor.is_idle:
                self._supervisors[path] = supervisor
                self._tasks.start_soon(self._run, supervisor)

    def _count(self, path: Path) -> None:
        if self._tasks is None:
            return  # not served
        entry = self.claims.get(path)
        holder = entry.holder if isinstance(entry, claims.ClaimEntry) else None
        before = self._holders.pop(path, None)
        if before is not None:
            self.held[before] -= 1
        if holder is not None:
            self._holders[path] = holder
            self.held[holder] += 1

    async def _run(self, supervisor: supervision.Supervisor) -> None:
        try:
            await supervisor.run()
        finally:
            if self._supervisors.get(supervisor.path) is supervisor:
                del self._supervisors[supervisor.path]
        # It may have come back while the last one was on its way out.
        if not supervisor.is_idle:
            self._concerns(supervisor.path)

    def run_over(self, path: Path, run: AnyRun) -> None:
        """A run has ended, perhaps long after it was given up."""
        if self.left_behind.get(path) is run:
            del self.left_behind[path]
        self._concerns(path)

    def give_up(self, count: int) -> None:
        """Leave so many of this runner's jobs to others."""
        own = [
            each
            for path, each in sorted(self._supervisors.items())
            if self._holders.get(path) == self.runner and each.could_move
        ]
        for supervisor in own[:count]:
            supervisor.move_on()

    def job_changed(self, entry: job.JobEntry) -> None:
        if self._service is not None and entry.path and not entry.exists:
            self._service.runs.forget(self.kind, entry.path)
        self._concerns(entry.path)

    def _keep_runs(self, service: serving.Service) -> None:
        """What runs have left of jobs that are gone goes, too."""
        jobs = [each for each in self.all_children if isinstance(each, job.JobEntry)]
        service.runs.keep_only(self.kind, [each.path for each in jobs if each.exists])

    def wake_all(self) -> None:
        """Code, modules, or the group's settings have changed."""
        for supervisor in list(self._supervisors.values()):
            supervisor.wake()

    def group_changed(self) -> None:
        """Members have come or gone, or N is another."""
        if self._service is not None:
            state = self._service.state_of(self)
            for supervisor in list(self._supervisors.values()):
                supervisor.group_changed(state)

    def updated(self) -> None:
        """The group's settings have changed."""
        self._settings = None
        if self._service is not None:
            self._tell_problems()
        self.group_changed()
        self.wake_all()


class AnyRunnerRoot(JobRoot):
    """Jobs that any one node of the group runs: `:.moat.kv.run.any.GROUP.PATH`."""

    kind = "any"


class SingleRunnerRoot(JobRoot):
    """Jobs for this node: `:.moat.kv.run.at.NODE.GROUP.PATH`."""

    kind = "at"

    @classmethod
    def below(cls, place: Path, group: Path, name: str) -> Path:
        return place / cls.kind / name + group


class AllRunnerRoot(JobRoot):
    """Jobs that every node of the group runs: `:.moat.kv.run.all.GROUP.PATH`.

    States and claims are at `.all.GROUP.NODE.PATH`.
    """

    kind = "all"
    every_node = True

    @classmethod
    def state_below(cls, place: Path, group: Path, name: str) -> Path:
        return cls.below(place, group, name) / name


ROOTS: dict[str, type[JobRoot]] = {
    cls.kind: cls for cls in (AnyRunnerRoot, SingleRunnerRoot, AllRunnerRoot)
}
