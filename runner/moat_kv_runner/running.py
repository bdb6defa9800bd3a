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
    execution,
    holding,
    messages,
    placing,
    readiness,
    schedule,
    script_client,
)
from moat_kv_runner.children import process_run
from moat_kv_runner.job import JobEntry, JobSpec

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


class Running:
    """See above; `see_through` is the whole of it."""

    def __init__(
        self,
        root: JobRoot,
        service: Service,
        entry: JobEntry,
        held: holding.Holding,
        signature: readiness.Signature,
    ) -> None:
        #: Why it was cancelled; None if it has ended by itself.
        self.stop: Stop | None = None
        self._root = root
        self._service = service
        self._entry = entry
        self._held = held
        self._signature = signature
        self._claim = held.claim
        self._news = anyio.Event()
        self._is_to_move = False
        self._run: execution.Run | process_run.ProcessRun

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
        run = self._run = self._made(spec, call)
        self._service.client.task_group.start_soon(run.work)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch_for_stop, tasks.cancel_scope)
                if spec.ok_after:
                    tasks.start_soon(self._well_after, spec.ok_after, tasks.cancel_scope)
                if spec.overlap == "restart" and spec.cron is not None:
                    tasks.start_soon(self._make_room, spec, tasks.cancel_scope)
                await run.over.wait()
                tasks.cancel_scope.cancel()
        finally:
            is_gone = self.stop == "lost" or self._service.session.ended
            if not await run.stop(STOP_S, at_once=is_gone):
                self._leave_behind(run)
        if self.stop != "lost" and not run.over.is_set():
            await self._wait_out(run)
        if self.stop == "lost":
            raise messages.claim_is_gone(self._entry.absolute)
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
            )
        return process_run.ProcessRun(call, facts, spec, self._service, state=state, on_over=over)

    def _facts(self) -> admin.RunFacts:
        service, claim = self._service, self._claim
        assert claim is not None  # the state was written under it a moment ago
        return admin.RunFacts(
            client=script_client.ScriptClient(
                service.client.shared, writes.Binding(fence=claim.guard), session=service.session
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

    async def _make_room(self, spec: JobSpec, scope: anyio.CancelScope) -> None:
        """Stop it when the next one is due."""
        started = self._held.state.started
        assert started is not None  # written before it began
        at = schedule.overlapping(spec, started)
        if at is None:
            return
        while (wait_s := at - time.time()) > 0:  # noqa: ASYNC110  # the wall clock may be set
            await anyio.sleep(min(wait_s, LONGEST_SLEEP_S))
        logger.info("%s: it makes room for the next run", self._entry.path)
        self.stop = "restart"
        scope.cancel()

    def _reason_to_stop(self) -> Stop | None:
        if self._held.is_lost:
            return "lost"
        if not self._entry.exists:
            return "stopped"
        try:
            spec = self._entry.spec()
        except errors.BadValue:
            return "restart"  # which waits until the entry is right
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
