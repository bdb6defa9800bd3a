"""One run under way: started, watched for what stops it, and seen to its end.

`supervision` makes a `Running` for each run, wakes it when something may have changed, and decides
afterwards what the end means. The script itself is in a child process (`process_run`) or a task of
the client (`execution.Run`), because one that does not heed its cancellation must be left behind
without holding up everything else.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Literal

import anyio

from moat_kv import errors
from moat_kv.client import writes
from moat_kv_runner import (
    admin,
    apart,
    execution,
    holding,
    messages,
    placing,
    readiness,
    schedule,
    script_client,
)
from moat_kv_runner.children import process_run, reporting
from moat_kv_runner.job import JobEntry, JobSpec
from moat_kv_runner.kept import sink

if TYPE_CHECKING:
    from moat_kv_runner.roots import JobRoot
    from moat_kv_runner.serving import Service

logger = logging.getLogger(__name__)

#: How long a script that was cancelled may take before it counts as one that does not end, in
#: seconds. Its contexts alone may take `admin.CLOSE_S`.
STOP_S = 6.0

#: Due times are by the wall clock, which may be set; so often they are looked at again, in seconds.
LONGEST_SLEEP_S = 30.0

#: Why a run is cancelled.
Stop = Literal["lost", "moved", "restart", "stopped"]
#: What is said of such a run.
_OUTCOMES: dict[Stop | None, str] = {
    "moved": "moved",
    "restart": "restarted",
    "stopped": "stopped",
}


class Running:
    """See above; `see_through` is the whole of it."""

    def __init__(
        self,
        root: JobRoot,
        service: Service,
        entry: JobEntry,
        held: holding.Holding,
        apartness: apart.Apart,
        signature: readiness.Signature,
    ) -> None:
        #: Why it was cancelled; None if it has ended by itself.
        self.stop: Stop | None = None
        #: The runner that goes on, where the network was parted.
        self.lost_to: str | None = None
        self._is_outvoted = False
        #: What the script is told if it is because its claim is lost.
        self.why_lost = str(messages.claim_is_gone(entry.absolute))
        self._root = root
        self._service = service
        self._entry = entry
        self._held = held
        self._apart = apartness
        self._signature = signature
        self._claim = held.claim
        self._news = anyio.Event()
        self._is_to_move = False
        self._run: execution.Run | process_run.ProcessRun
        self._kept: sink.RunSink

    def move_on(self) -> None:
        """End it, so that another node goes on."""
        self._is_to_move = True
        self.wake()

    def wake(self) -> None:
        """Something may have changed."""
        self._news.set()
        self._news = anyio.Event()

    def group_changed(self, state: messages.ActorState) -> None:
        self._run.tell_state(state)

    async def see_through(
        self, spec: JobSpec, call: readiness.Call
    ) -> execution.Run | process_run.ProcessRun:
        """Run the script until it ends or has to; the run is over then.

        Raises LostClaim, and leaves behind a script that does not end though its claim is lost. So
        it does if it is cancelled itself. One that has only to stop is waited for.
        """
        began = {
            "started": time.time(),
            "node": self._service.name,
            "fence": self._claim and self._claim.fence,
        }
        self._kept = self._service.runs.begin(self._root.kind, self._entry.path, began)
        try:
            run = await self._see_through(spec, call)
        except BaseException as exc:
            self._keep_break(exc)
            raise
        self._keep_end(run)
        return run

    def _keep_end(self, run: execution.Run | process_run.ProcessRun) -> None:
        """Note how it has ended."""
        outcome = _OUTCOMES.get(self.stop) or ("done" if run.error is None else "failed")
        result = run.result if outcome == "done" else None
        self._kept.ended(outcome, at=time.time(), result=result, error=run.error)

    def _keep_break(self, why: BaseException) -> None:
        """Note what has cut it off."""
        if isinstance(why, messages.LostClaim) or self._service.session.ended:
            reason = self._held.why_lost or "the session of its runner has ended"
            self._kept.ended("lost", at=time.time(), reason=reason)
        elif isinstance(why, Exception):
            self._kept.ended("cut off", at=time.time(), error=why)
        else:
            self._kept.ended("cut off", at=time.time(), reason="its runner was stopped")

    async def _see_through(
        self, spec: JobSpec, call: readiness.Call
    ) -> execution.Run | process_run.ProcessRun:
        run = self._run = self._made(spec, call)
        self._service.client.task_group.start_soon(run.work)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch_for_stop, tasks.cancel_scope)
                if self._root.kind == "any" or self._held.is_apart:
                    tasks.start_soon(self._keep_one, tasks.cancel_scope)
                if spec.ok_after:
                    tasks.start_soon(self._well_after, spec.ok_after, tasks.cancel_scope)
                if spec.overlap == "restart" and spec.cron is not None:
                    tasks.start_soon(self._make_room, spec, tasks.cancel_scope)
                await run.over.wait()
                tasks.cancel_scope.cancel()
        finally:
            # One that was not picked has time to end well: others are known to be at work.
            is_lost = self.stop == "lost" and not self._is_outvoted
            is_gone = is_lost or self._service.session.ended
            if self._is_outvoted:
                await run.tell_lost(self.why_lost)
            if not await run.stop(STOP_S, at_once=is_gone):
                self._leave_behind(run)
        if self.stop != "lost" and not run.over.is_set():
            await self._wait_out(run)
        if self.stop == "lost":
            raise messages.LostClaim(self.why_lost)
        # Whoever cancels this run's task cancels this one, too; nothing may be written then.
        await anyio.lowlevel.checkpoint()
        if run.was_left_alone and self.stop is None:
            # If the claim is gone with the session, that is told when this is written down.
            logger.warning("%s: its runner was frozen; it begins anew", self._entry.path)
            self.stop = "restart"
        if run.was_cut_off and self.stop is None:
            await anyio.sleep_forever()
        return run

    def _made(self, spec: JobSpec, call: readiness.Call) -> execution.Run | process_run.ProcessRun:
        facts, state = self._facts(), self._service.state_of(self._root)

        def over() -> None:
            self._root.run_over(self._entry.path, self._run)

        if self._service.is_inline(spec):
            return execution.Run(
                call,
                admin.CallAdmin(facts, state=state),
                client=facts.client,
                modules=self._service.modules,
                config=self._service.config,
                on_over=over,
                log=sink.RunLogger(f"{reporting.JOBS}.{facts.path}", self._kept),
            )
        return process_run.ProcessRun(
            call, facts, spec, self._service, state=state, on_over=over, kept=self._kept
        )

    def _facts(self) -> admin.RunFacts:
        service, claim = self._service, self._claim
        assert claim is not None  # the state was written under it a moment ago
        binding: writes.Binding = script_client.LateBinding()
        if claim.fence:
            binding = writes.Binding(fence=claim.guard)
        return admin.RunFacts(
            client=script_client.ScriptClient(
                service.client.shared, binding, session=service.session
            ),
            runner_client=service.client,
            places=service.places,
            node=service.name,
            path=self._entry.absolute,
            fence=claim.fence,
            every_node=self._root.every_node,
            queue_limit=service.queue_limit,
            work_well=self._work_well,
        )

    # What stops it ------------------------------------------------------------------------------

    async def _watch_for_stop(self, scope: anyio.CancelScope) -> None:
        while True:
            news = self._news
            self.stop = self._reason_to_stop()
            if self.stop is not None:
                logger.info("%s: %s", self._entry.path, self.stop)
                scope.cancel()
                return
            await news.wait()

    async def _keep_one(self, scope: anyio.CancelScope) -> None:
        """After the network was parted: get the claim, or settle who goes on with the job."""
        held = self._held
        while True:
            news = self._news
            try:
                if held.is_apart and not self._service.is_parted and await self._apart.confirm():
                    self._claim = held.claim
                    assert self._claim is not None
                    await self._run.confirm(self._claim.guard)
                winner = await self._apart.settle()
                if winner is None:
                    with anyio.move_on_after(apart.LOOK_S if self._apart.is_open else None):
                        await news.wait()
                    continue
                self._is_outvoted = True
                self.why_lost = f"runner {winner} goes on with it, after the network was parted"
            except messages.LostClaim as exc:
                self.why_lost = str(exc)
            self.stop = "lost"
            scope.cancel()
            return

    async def _make_room(self, spec: JobSpec, scope: anyio.CancelScope) -> None:
        """Stop it when the next one is due."""
        started = self._held.state.started
        assert started is not None  # written before it began
        at = schedule.overlapping(spec, started)
        if at is None:
            return
        while (wait_s := at - time.time()) > 0:  # noqa: ASYNC110  # the wall clock may be set
            await anyio.sleep(min(wait_s, LONGEST_SLEEP_S))
        if self._run.over.is_set():
            return  # it has come to its end by itself just now
        logger.info("%s: it makes room for the next run", self._entry.path)
        self.stop = "restart"
        scope.cancel()

    def _reason_to_stop(self) -> Stop | None:
        if self._held.is_lost:
            self.why_lost = self._held.why_lost or self.why_lost
            self._is_outvoted = self._held.is_apart
            return "lost"
        if not self._entry.exists:
            return "stopped"
        try:
            spec = self._entry.spec()
        except errors.BadValue:
            return "restart"  # which waits until the entry is right
        if self._held.is_apart:
            winner = self._apart.loses_to(spec)
            if winner is not None:
                self.lost_to, self._is_outvoted = winner, True
                self.why_lost = f"runner {winner} of the same part goes on with it"
                return "lost"
            if not self._apart.may_go_on(spec):
                return "moved"
        if not spec.enabled or spec.target is None:
            return "stopped"
        is_drained = self._service.name in self._root.settings.drained
        if self._is_to_move or is_drained or not placing.suits(spec, self._service.facts):
            return "moved"
        now = readiness.signature(spec, self._service.code, self._service.modules)
        return "restart" if now != self._signature else None

    def _leave_behind(self, run: execution.Run | process_run.ProcessRun) -> None:
        path = self._entry.path
        text = "job %s: its script does not end, %g s after it was told to; the job waits for that"
        logger.warning(text, self._entry.absolute, STOP_S)
        self._root.left_behind[path] = run

    async def _wait_out(self, run: execution.Run | process_run.ProcessRun) -> None:
        """The claim is kept meanwhile, so that no other node begins while this one goes on."""
        await self._held.note(reason="stopping: its script does not end", computed=None)
        while not run.over.is_set():
            news = self._news
            if self._held.is_lost:
                self.stop = "lost"
                return
            await news.wait()

    # What it says of itself ---------------------------------------------------------------------

    async def _well_after(self, seconds: float, scope: anyio.CancelScope) -> None:
        # A process, and modules, may take a while to be there.
        await self._run.begun.wait()
        await anyio.sleep(seconds)
        try:
            await self._work_well()
        except messages.LostClaim:
            self.stop = "lost"
            scope.cancel()

    async def _work_well(self) -> None:
        """The run has shown that it works: earlier failures are forgotten."""
        if self._held.claim is not self._claim:
            raise messages.claim_is_gone(self._entry.absolute)
        if self._held.state.backoff:
            await self._held.write(backoff=0)
        await self._held.resolve_error()
