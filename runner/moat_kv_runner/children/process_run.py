"""One run of a procedure in a child process; what `execution.Run` is for those in the runner.

Made by `running`. The child has its own line to the server; what it asks of the runner is only what
hangs on the job's state. Nothing that comes from it is trusted to be there, or to come in time.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc

from moat_kv import codec, errors
from moat_kv.client import writes
from moat_kv_runner import admin, job, messages, readiness, script_config
from moat_kv_runner.children import (
    calls,
    child_process,
    limits,
    nursery,
    processes,
    reporting,
    wire,
)
from moat_kv_runner.kept import sink

if TYPE_CHECKING:
    from moat_kv_runner.serving import Service

logger = logging.getLogger(__name__)

#: So many questions of a run may wait for their answers.
ASKING_LIMIT = 100

#: How long a script that is told why it ends may take before it is ended by force, in seconds.
TOLD_S = 2.0

_numbers = itertools.count(1)


class ProcessRun:
    """See above. `work` is a task of the client, and contains whatever goes wrong."""

    def __init__(
        self,
        call: readiness.Call,
        facts: admin.RunFacts,
        spec: job.JobSpec,
        service: Service,
        *,
        state: messages.ActorState,
        on_over: Callable[[], None],
        kept: sink.RunSink | None = None,
    ) -> None:
        #: Set right before the script's first line.
        self.begun = anyio.Event()
        #: Set when nothing of it goes on any more.
        self.over = anyio.Event()
        #: It was cancelled before it had a result or an error.
        self.was_cut_off = True
        #: The runner's session was over, or it was frozen for as long as that.
        self.was_left_alone = False
        #: It was told to end, and did not until it was killed.
        self.was_killed = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._number = next(_numbers)
        self._call = call
        self._facts = facts
        self._spec = spec
        self._service = service
        self._state = state
        self._on_over = on_over
        self._kept = kept
        self._allowed = limits.of(spec.limits)
        self._child: child_process.ChildProcess | None = None
        self._answers: anyio.abc.TaskGroup
        self._done = anyio.Event()
        self._is_stopping = False
        self._asking = 0

    @property
    def pid(self) -> int | None:
        """The child's, once it is known."""
        return self._child.pid if self._child is not None else None

    def tell_state(self, state: messages.ActorState) -> None:
        """The group's state has changed, perhaps."""
        self._state = state
        if self._child is not None:
            self._child.send("state", self._number, state=calls.state_facts(state))

    async def confirm(self, fence: writes.Guard) -> None:
        """It began without a claim, and has this one now."""
        if self._child is not None:
            token = await self._token(fence)
            self._child.send("claim", self._number, claim=fence[0], fence=fence[1], token=token)

    async def tell_lost(self, why: str) -> None:
        """Tell the script that the job is another runner's, and cancel it; `stop` has to follow.

        Cannot be cancelled itself.
        """
        if self._child is not None:
            self._is_stopping = True
            self._child.send("lost", self._number, why=why)
            with anyio.move_on_after(TOLD_S, shield=True):
                await self._done.wait()

    async def work(self) -> None:
        """Run it to its end."""
        try:
            async with anyio.create_task_group() as self._answers:
                try:
                    await self._begin()
                except Exception as exc:
                    self.error, self.was_cut_off = exc, False
                else:
                    await self._done.wait()
                self._answers.cancel_scope.cancel()
        finally:
            self._leave_child()
            self.over.set()
            self._on_over()

    async def stop(self, limit_s: float, *, at_once: bool = False) -> bool:
        """Have it end, killed if it has not within so many seconds, or `at_once`, nearly so.

        Whether it is over then: it is, unless the system does not let go of its process. Cannot be
        cancelled itself.
        """
        if not self.over.is_set():
            self._is_stopping = True
            grace_s = self._service.kill_grace_s if at_once else limit_s
            if self._child is None:
                self._done.set()
            elif self._spec.share is None:
                self._child.stop(grace_s)
            else:
                self._child.send("stop", self._number)
                self._service.client.task_group.start_soon(self._kill_shared, grace_s)
            with anyio.move_on_after(grace_s + child_process.EXIT_S + 1, shield=True):
                await self.over.wait()
        return self.over.is_set()

    async def _kill_shared(self, grace_s: float) -> None:
        with anyio.move_on_after(grace_s):
            await self.over.wait()
        if not self.over.is_set() and self._child is not None:
            logger.warning("%s: does not end; all that share its process end", self._facts.path)
            self._child.problem = f"another job of its share did not end: {self._facts.path}"
            self._child.stop(0, term=False)

    # Starting -----------------------------------------------------------------------------------

    async def _begin(self) -> None:
        call = await self._child_call()
        if self._is_stopping:
            return
        child = self._service.children.child_for(self._spec, self._facts.path, self._backend())
        child.runs[self._number] = self
        self._child = child
        child.send("start", self._number, **call.as_fields())

    def _backend(self) -> str:
        return self._call.backend or "asyncio"

    async def _child_call(self) -> calls.ChildCall:
        call, facts, service = self._call, self._facts, self._service
        claim, fence = facts.client.binding.fence or (facts.path, 0)
        token = await self._token((claim, fence)) if fence else ""
        source = call.procedure.source
        modules = service.modules
        return calls.ChildCall(
            name=call.procedure.name,
            text=source.text,
            rev=source.rev,
            is_async=call.procedure.is_async,
            parameters=list(call.procedure.variables),
            values=dict(call.variables),
            required=modules.order(call.needs, needed_by=call.procedure.name),
            overrides=modules.overriding(),
            urls=service.client.shared.link.urls,
            epoch=service.client.server.epoch,
            claim=claim,
            fence=fence,
            token=token,
            job=facts.path,
            node=facts.node,
            every_node=facts.every_node,
            queue_limit=facts.queue_limit,
            config=script_config.as_value(service.config),
            places=dict(vars(facts.places)),
            state=calls.state_facts(self._state),
            log_level=logging.getLogger("moat_kv.job").getEffectiveLevel(),
            is_shared=self._spec.share is not None,
        )

    async def _token(self, fence: writes.Guard) -> str:
        """What shows the server that a line may act for a claim. Raises LostClaim."""
        path, rev = fence
        held = await self._service.client.get(path)
        token = held.value.get("token") if isinstance(held.get("value"), Mapping) else None
        if held.rev != rev or not isinstance(token, str):
            raise messages.claim_is_gone(self._facts.path)
        return token

    # What the child says ------------------------------------------------------------------------

    def take(self, frame: wire.Frame) -> None:
        if self._done.is_set():
            return
        if frame.kind == "ask":
            self._asking += 1
            if self._asking > ASKING_LIMIT:
                raise ValueError(f"more than {ASKING_LIMIT} questions at once")
            self._answers.start_soon(self._answer, frame.fields["id"], frame.fields["what"])
        elif frame.kind == "begun":
            self.begun.set()
        elif frame.kind == "result":
            self._take_result(frame.fields["packed"])
        elif frame.kind == "failed":
            self._settle(calls.failure_of(frame.fields))
        elif frame.kind == "cut_off":
            self._end_with_child()

    def printed(self, stream: str, text: str) -> None:
        """A line that its process has printed; in a share it may be another run's."""
        if self._kept is not None:
            self._kept.printed(stream, text)

    def logged(self, level: int, name: str, text: str) -> None:
        """A log record of its process."""
        own = f"{reporting.JOBS}.{self._facts.path}"
        is_jobs = name.startswith(f"{reporting.JOBS}.")
        is_others = is_jobs and name != own and not name.startswith(f"{own}.")
        if self._kept is not None and not is_others:
            self._kept.logged(level, name, text)

    def _take_result(self, packed: bytes) -> None:
        try:
            self.result = codec.unpack(packed)
        except errors.MoatKvError as exc:
            self._settle(exc)
        else:
            self._settle(None)

    def _settle(self, error: BaseException | None) -> None:
        if self.was_cut_off:
            self.error, self.was_cut_off = error, False
            self._end_with_child()

    def _end_with_child(self) -> None:
        """It has told its end: over, as soon as nothing of it is left."""
        if self._spec.share is not None:
            self._done.set()
        elif self._child is not None:
            self._child.stop(child_process.EXIT_S, term=False)

    async def _answer(self, id: int, what: str) -> None:
        error: Exception | None = None
        try:
            if what == "work_well":
                await self._facts.work_well()
            else:
                error = errors.UnknownAction(what[:64])
        except (errors.MoatKvError, messages.LostClaim) as exc:
            error = exc
        self._asking -= 1
        if self._child is not None:
            self._child.send("answer", self._number, id=id, **calls.answer_facts(error))

    def child_over(self, child: child_process.ChildProcess) -> None:
        """Nothing is left of the child."""
        end = child.end or {}
        if self.was_cut_off and self._is_stopping:
            self.was_killed = end.get("killed") == "grace"
        elif self.was_cut_off:
            if end.get("killed") == "lease":
                self.was_left_alone = True
            else:
                self.error = admin.ScriptEnded(self._why(child))
                self.was_cut_off = False
        if end.get("left_behind"):
            text = "%s: %d processes that it had left behind were killed"
            logger.warning(text, self._facts.path, end["left_behind"])
        self._done.set()

    def _why(self, child: child_process.ChildProcess) -> str:
        end = child.end
        if end is None and child.pid is None:
            return child.problem or "its process could not be started"
        if end is None:
            return "its process was killed with its keeper"
        if end.get("killed") == "processes":
            return f"it wanted more than {self._allowed.processes:g} processes, its limit"
        if child.problem is not None and end.get("killed") == "grace":
            return child.problem
        status = end.get("status")
        if not isinstance(status, int):
            return "its process was killed"
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGXCPU:
                return f"it has used {self._allowed.cpu_s:g} s of processor time, its limit"
            word = "was killed" if number in (signal.SIGKILL, signal.SIGTERM) else "crashed"
            return f"its process {word} ({processes.signal_name(number)})"
        code = os.WEXITSTATUS(status)
        return f"its process ended with exit code {code}, in the middle of the script"

    def _leave_child(self) -> None:
        child = self._child
        if child is not None:
            child.runs.pop(self._number, None)
            if not child.runs and not child.over.is_set():
                child.send("exit", 0)
                child.stop(child_process.EXIT_S, term=False)


class Children:
    """The children of one runner, as far as several runs may have one together."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._shared: dict[tuple[str, str], child_process.ChildProcess] = {}
        self._requests: dict[tuple[str, str], dict[str, Any]] = {}

    def child_for(self, spec: job.JobSpec, path: Any, backend: str) -> child_process.ChildProcess:
        """The child for a run: one of its own, or that of its share.

        Raises BadValue if those that share it are of other limits or another environment.
        """
        request = {
            "limits": dict(spec.limits),
            "env": nursery.child_environment({str(k): str(v) for k, v in spec.env.items()}),
            "backend": backend,
        }
        if spec.share is None:
            return self._started(str(path), request)
        key = (spec.share, backend)
        child = self._shared.get(key)
        if child is None or not child.can_be_joined:
            child = self._started(f"share {spec.share}", request)
            self._shared[key], self._requests[key] = child, request
        elif self._requests[key] != request:
            reason = f"share: other jobs in {spec.share} have another env or other limits"
            raise errors.BadValue(reason)
        return child

    def _started(self, name: str, request: dict[str, Any]) -> child_process.ChildProcess:
        service = self._service
        child = child_process.ChildProcess(name, service.modules)
        service.client.task_group.start_soon(child.live, request, service.lease.fd)
        return child
