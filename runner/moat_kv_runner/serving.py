"""A runner at work: its session, its place in the group, and the jobs of its roots.

Made by `runner.run` for all kinds at once, or by a root that is used as a library. A service holds
one session at a time. If that is lost, so are all claims: every job is cancelled, and all begins
anew under another session.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.abc

from moat_kv import config, errors
from moat_kv.client import claiming, results
from moat_kv.client.client import Client
from moat_kv.client.session import Session
from moat_kv.code.modules import ModuleRoot
from moat_kv.code.procedures import CodeRoot
from moat_kv.path import Path
from moat_kv_runner import (
    code_errors,
    group_state,
    job,
    messages,
    node_facts,
    notices,
    placing,
    script_config,
    times,
)
from moat_kv_runner.children import abilities, lease, nursery, process_run
from moat_kv_runner.kept import answering, recorder

if TYPE_CHECKING:
    from moat_kv_runner.roots import JobRoot

logger = logging.getLogger(__name__)

#: When a runner ends in good order, it sees itself to the end of its children; its keepers wait so
#: long for that, in seconds.
LEASE_END_S = 15.0

#: How often a taken name is tried while its former holder's session may still end, in seconds.
NAME_RETRY_S = 0.2
#: What is added to the session's own times before a name counts as taken, in seconds.
NAME_MARGIN_S = 1.0


#: Called with jobs, by the paths of their entries, whose scripts do not end.
OnStuck = Callable[[Sequence[Path]], None]


def rebalance_topic(places: config.Places, group: Path) -> Path:
    """A message here asks the runners of a group to spread its jobs anew."""
    return places.group + group / "rebalance"


class Service:
    """What a runner's jobs have in common."""

    def __init__(
        self,
        client: Client,
        roots: Sequence[JobRoot],
        *,
        name: str,
        group: Path,
        places: config.Places,
        code: CodeRoot,
        modules: ModuleRoot,
        ttl_s: float | None = None,
        grace_s: float | None = None,
        facts: node_facts.NodeFacts | None = None,
        on_stuck: OnStuck | None = None,
        isolate: str | None = None,
    ) -> None:
        self.client = client
        self.name = name
        self.group = group
        self.places = places
        self.code = code
        self.modules = modules
        # The session must be kept up, and other jobs told, whatever somebody stores.
        code.compiles_aside = modules.compiles_aside = True
        #: Set while jobs run.
        self.session: Session
        self.queue_limit = client.config.runner.queue
        #: What the group is told of this node.
        self.facts = facts or node_facts.NodeFacts(
            tags=frozenset(client.config.runner.tags), weight=client.config.runner.weight
        )
        self._roots = list(roots)
        ours = client.config.runner
        self._session_times = {
            "ttl_s": ours.ttl_s if ttl_s is None else ttl_s,
            "grace_s": ours.grace_s if grace_s is None else grace_s,
        }
        times.check(**self._session_times)
        self._on_stuck = on_stuck
        # Where jobs run that do not say, nor their group.
        self._isolate = isolate or client.config.runner.isolate
        self.config = script_config.view_of(
            client.config, places, name=name, group=group, isolate=self._isolate
        )
        self.lease = lease.LeasePage()
        self.children = process_run.Children(self)
        #: Where runs put what they print, and how they end.
        self.runs = recorder.Recorder(client.config.runner, name=name, group=group)
        self._has_served = False
        #: None: the group cannot be seen.
        self._members: results.Members | None = None
        #: Those that this process has had, by id; what is bound to them is nobody else's.
        self.former_sessions: set[str] = set()

    @classmethod
    async def make(
        cls,
        client: Client,
        roots: Sequence[JobRoot],
        *,
        name: str,
        group: Path,
        places: config.Places,
        code: CodeRoot | None = None,
        ttl_s: float | None = None,
        grace_s: float | None = None,
        facts: node_facts.NodeFacts | None = None,
        on_stuck: OnStuck | None = None,
        isolate: str | None = None,
    ) -> Self:
        """With mirrors of code and modules; `code` may be one that is there already."""
        return cls(
            client,
            roots,
            name=name,
            group=group,
            places=places,
            code=code or await CodeRoot.as_handler(client, places=places),
            modules=await ModuleRoot.as_handler(client, places=places),
            ttl_s=ttl_s,
            grace_s=grace_s,
            facts=facts,
            on_stuck=on_stuck,
            isolate=isolate,
        )

    # Children -----------------------------------------------------------------------------------

    def is_inline(self, spec: job.JobSpec) -> bool:
        """Whether a job runs in this process."""
        return (spec.isolate or self._isolate) == "inline"

    @property
    def kill_grace_s(self) -> float:
        """How long children may take to end when the session is lost, in seconds."""
        return times.kill_s(self.session.ttl_s, self.session.grace_s)

    async def _keep_lease(self) -> None:
        """Tell the keepers of children for how long the session is good, until it ends."""
        session = self.session
        every_s = min(session.grace_s, session.ttl_s) / 8
        try:
            while not session.ended:
                self._renew_lease()
                await anyio.sleep(every_s)
        finally:
            self.lease.renew(self.kill_grace_s if session.ended else LEASE_END_S)

    def _renew_lease(self) -> None:
        self.lease.renew(self.session.good_until - time.monotonic())

    # The group ----------------------------------------------------------------------------------

    @property
    def kinds(self) -> list[str]:
        """The kinds of jobs that run here."""
        return [root.kind for root in self._roots]

    @property
    def group_path(self) -> Path:
        return self.places.group + self.group

    def state_of(self, root: JobRoot) -> messages.ActorState:
        """The group's state, as a root's jobs are told it."""
        return group_state.judge(self._members, own_name=self.name, nodes=root.nodes)

    @property
    def is_parted(self) -> bool:
        """The server has been cut off for longer than claims hold; see `parting`."""
        return self._members is not None and self._members.parted

    def load_of(self, name: str) -> float:
        """How busy a runner's node is, as it has told."""
        if name == self.name:
            return self.facts.load
        member = self._members.get(name) if self._members is not None else None
        return node_facts.parse(member.info).load if member is not None else 0.0

    def candidates(self, root: JobRoot) -> list[str] | None:
        """Who may run a root's jobs; None if only this runner may."""
        if root.kind != "any":
            return None
        if self._members is None:
            return []
        return [name for name, member in self._members.items() if root.kind in member.roles]

    def nodes_for(self, root: JobRoot) -> list[placing.Candidate]:
        """The nodes that may take a root's jobs now, this one among them unless it is drained."""
        told = {name: node_facts.parse(each.info) for name, each in (self._members or {}).items()}
        told[self.name] = self.facts
        return [
            placing.Candidate(name=name, facts=told[name], jobs=root.held[name])
            for name in {*(self.candidates(root) or ()), self.name}
            if name not in root.settings.drained
        ]

    async def _watch_members(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        is_known = False
        async with self.client.watch_group(self.group_path) as watch:
            async for members in watch:
                self._members = members
                for root in self._roots:
                    root.group_changed()
                if not is_known:
                    is_known = True
                    task_status.started()

    async def _tell_load(self) -> None:
        """Tell the group when the load of this node has changed."""
        while True:
            await anyio.sleep(node_facts.LOOK_S)
            facts = dataclasses.replace(self.facts, load=node_facts.own_load())
            if facts != self.facts:
                self.facts = facts
                for root in self._roots:
                    # Without a line it can wait; it is no reason to end the jobs.
                    tell = functools.partial(self._join_as, root)
                    await claiming.patiently(self.client, tell)

    async def _join_as(self, root: JobRoot) -> None:
        await self.client.join(
            self.group_path,
            self.name,
            session=self.session,
            role=root.kind,
            info=self.facts.as_info(),
        )

    async def _watch_wishes(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Leave jobs to others when somebody asks for that."""
        async with self.client.monitor(rebalance_topic(self.places, self.group)) as asked:
            task_status.started()
            async for _ in asked:
                for root in self._roots:
                    if root.kind == "any":
                        nodes = self.nodes_for(root)
                        held = {node.name: node.jobs for node in nodes}
                        weights = {node.name: node.facts.weight for node in nodes}
                        root.give_up(placing.surplus(held, weights, self.name))

    # Life ---------------------------------------------------------------------------------------

    async def serve(
        self, *, task_status: anyio.abc.TaskStatus[str] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the jobs until cancelled. `task_status` is told the name when it has begun.

        Raises NameTaken if another runner has this name in the group, BadConfig for a session whose
        times leave too little for what has to be done within them.
        """
        abilities.tell_gaps()
        abilities.raise_file_limit()
        if self._isolate == "process":
            nursery.NURSERY.start()  # ready when the first job is
        with self._listening(), contextlib.closing(self.lease), contextlib.closing(self.runs):
            while True:
                try:
                    async with self.client.session(**self._session_times) as self.session:
                        times.check(self.session.ttl_s, self.session.grace_s)
                        self.former_sessions.add(self.session.id)
                        try:
                            await self._join()
                            await self._serve_session(task_status)
                        except anyio.get_cancelled_exc_class():
                            self._tell_stuck()
                            raise
                except* (*claiming.PASSING, errors.SessionExpired) as group:
                    # With a line it is the server that has trouble; without, there is no hurry.
                    limit_s = 1 if self.client.connected else None
                    for exc in group.exceptions if limit_s else ():
                        logger.warning("%s: %s; beginning anew", self.name, exc)
                    with anyio.move_on_after(limit_s):
                        await claiming.line_change(self.client)

    def _tell_stuck(self) -> None:
        """At the end, before the claims of scripts that do not end pass on."""
        stuck = [root.base + path for root in self._roots for path in root.left_behind]
        if stuck and self._on_stuck is not None:
            self._on_stuck(stuck)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        def wake_all(*_changed: Any) -> None:
            for root in self._roots:
                root.wake_all()

        ends = [
            self.code.listen(wake_all),
            self.modules.listen(wake_all),
            self.client.add_connection_listener(self._line_changed),
        ]
        try:
            yield
        finally:
            for end in ends:
                end()

    def _line_changed(self, is_up: bool) -> None:
        session: Session | None = getattr(self, "session", None)
        if is_up:
            done = "begin anew" if session is None or session.ended else "went on"
            logger.warning("%s: the server is back; the jobs %s", self.name, done)
        elif session is not None:
            text = "%s: the server is away; without it the jobs go on for %g s, then they end"
            logger.warning(text, self.name, session.give_up_s)

    async def _join(self) -> None:
        """Be in the group with each kind.

        A former session, of this runner or of one that was killed, may still hold the name; it is
        waited for as long as it can last.
        """
        session = self.session
        limit_s = session.grace_s if not self._has_served else session.ttl_s
        give_up_at = anyio.current_time() + limit_s + NAME_MARGIN_S
        for root in self._roots:
            while True:
                try:
                    await self._join_as(root)
                    break
                except errors.NameTaken as exc:
                    if anyio.current_time() >= give_up_at:
                        hint = f"another runner in the group {self.group} has it"
                        raise errors.NameTaken("runner name", self.name, hint=hint) from exc
                    logger.info("%s; it may be about to end", exc)
                await anyio.sleep(NAME_RETRY_S)

    async def _serve_session(self, task_status: anyio.abc.TaskStatus[str]) -> None:
        self._renew_lease()
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._watch_members)
                for root in self._roots:
                    await tasks.start(root.supervise, self)
                tasks.start_soon(code_errors.keep, self)
                await tasks.start(functools.partial(answering.answer, self))
                for root in self._roots:
                    if root.kind == "any":
                        tasks.start_soon(notices.serve, self, root)
                tasks.start_soon(self._tell_load)
                await tasks.start(self._watch_wishes)
                tasks.start_soon(self._keep_lease)
                if not self._has_served:
                    self._has_served = True
                    task_status.started(self.name)
                logger.info("%s serves %s", self.name, ", ".join(str(r.base) for r in self._roots))
                await self.session.lost.wait()
                if self.client.connected:
                    why = self.session.why_lost
                    logger.warning("%s: all jobs end, and begin anew: %s", self.name, why)
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
