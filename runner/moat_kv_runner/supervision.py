"""One job's life on one runner: wait until it is due, claim it, run it, say what became of it.

`roots.JobRoot` keeps a `Supervisor` for each job that its runner may have to do with, and wakes it
whenever something may have changed: the job, its state, its claim, code, modules, the group. Each
step is judged anew from what is there (`schedule`, `placing`, `readiness`), so nothing is lost by
being woken once too often. What is written is written through `holding`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import anyio

from moat_kv import errors
from moat_kv.client import claiming, error_record
from moat_kv.path import Path
from moat_kv_runner import (
    admin,
    apart,
    execution,
    holding,
    messages,
    obtaining,
    readiness,
    running,
    schedule,
)
from moat_kv_runner.children import process_run
from moat_kv_runner.job import JobEntry, JobSpec

if TYPE_CHECKING:
    from moat_kv_runner.roots import JobRoot
    from moat_kv_runner.serving import Service

logger = logging.getLogger(__name__)

#: After a fault of our own, in seconds.
FAULT_S = 5.0
#: How long a job may take to be left when its runner ends, in seconds.
LEAVE_S = 3.0


class Supervisor:
    """See above; `run` is its task."""

    def __init__(self, root: JobRoot, service: Service, path: Path) -> None:
        self.path = path
        self.entry = cast(JobEntry, root.follow(path, create=True))
        self._root = root
        self._service = service
        self._client = service.client
        self._held = holding.Holding(root, service, path)
        self._apart = apart.Apart(root, service, path, self._held)
        self._turn = obtaining.Obtaining(
            root, service, self.entry.absolute, self._held, self._apart
        )
        self._news = anyio.Event()
        # The run that is under way; its end has not been written yet.
        self._running: running.Running | None = None
        # It was cancelled to be started anew.
        self._again = False

    def wake(self) -> None:
        """Something may have changed."""
        self._news.set()
        self._news = anyio.Event()
        if self._running is not None:
            self._running.wake()

    def move_on(self) -> None:
        """Leave the job to another node."""
        self._turn.shun()
        self.wake()
        if self._running is not None:
            self._running.move_on()

    @property
    def could_move(self) -> bool:
        """Whether another node could have the job."""
        try:
            return self._turn.fits_elsewhere(self.entry.spec())
        except errors.BadValue:
            return False

    def group_changed(self, state: messages.ActorState) -> None:
        if self._running is not None:
            self._running.group_changed(state)
        self.wake()

    @property
    def is_idle(self) -> bool:
        """There is no job, and nothing to leave."""
        held = self._held
        return not self.entry.exists and held.claim is None and not held.has_remains

    async def run(self) -> None:
        """Until the job is gone, or cancelled."""
        try:
            while not self.is_idle:
                try:
                    await self._step(self._news)
                except messages.LostClaim as exc:
                    text = "job %s: its run here was ended: %s"
                    logger.warning(text, self.entry.absolute, self._held.why_lost or exc)
                    if self._running is not None:
                        await self._apart.lost(self._running.lost_to)
                    self._held.claim = self._running = None
                except errors.SessionExpired:
                    # When the client has noticed, all jobs end.
                    self._held.claim = self._running = None
                    await self._service.session.doubt()
                except claiming.PASSING as exc:
                    logger.info("%s: %s", self.path, exc)
                    with anyio.move_on_after(1):
                        await claiming.line_change(self._client)
                except Exception:
                    logger.exception("%s: a fault of the runner", self.path)
                    self._running = None
                    await anyio.sleep(FAULT_S)
        finally:
            await self._leave()

    # Deciding -----------------------------------------------------------------------------------

    async def _step(self, news: anyio.Event) -> None:
        """Whatever is next; returns when it is done, or when there is news."""
        if self.path in self._root.left_behind:
            await news.wait()
            return
        if not self.entry.exists:
            await self._forget(news)
            return
        try:
            spec, problem = self.entry.spec(), None
        except errors.BadValue as exc:
            spec, problem = JobSpec(target=0.0), exc
        if self._held.claim is not None and not self._turn.may_have(spec):
            await self._move()
            return
        if not await self._apart.agree(spec, may_have=self._turn.may_have(spec)):
            return
        due = self._due(spec, problem)
        now = time.time()
        if due.at is None or due.at > now:
            self._turn.not_yet()
            if not due.goes_on:
                await self._let_go(due)
        if due.at is None:
            await news.wait()
        elif due.at > now:
            with anyio.move_on_after(min(due.at - now, running.LONGEST_SLEEP_S)):
                await news.wait()
        elif self._held.claim is None:
            await self._turn.obtain(spec, news, fit=readiness.is_fit(spec, self._service.code))
        elif problem is not None:
            await self._wait_for(problem, news, fit=True)
        else:
            await self._try(spec, news, due)

    def _due(self, spec: JobSpec, problem: errors.BadValue | None) -> schedule.Due:
        if problem is not None:
            return schedule.Due(0.0, "the job's entry is wrong", True)
        is_held = self._held.claim is not None
        past = self._held.state if is_held else self._held.shown
        due = schedule.due(spec, past, time.time(), key=self.entry.absolute.packed)
        if due.parked and past.parked not in (None, self._digest(spec)):
            return schedule.Due(past.stopped, "its code has changed since it was parked")
        return due._replace(at=0.0) if self._again and due.at is not None else due

    def _digest(self, spec: JobSpec) -> bytes:
        service = self._service
        return readiness.digest(readiness.signature(spec, service.code, service.modules))

    async def _move(self) -> None:
        """Leave the job to others; to them it has been cut off if it was running."""
        self._again = False
        if self._held.state.running or self._held.state.reason is None:
            await self._held.note(reason=f"moving from {self._service.name}", computed=None)
        await self._held.release()

    async def _try(self, spec: JobSpec, news: anyio.Event, due: schedule.Due) -> None:
        """Run the job, or wait for what it lacks."""
        service = self._service
        signature = readiness.signature(spec, service.code, service.modules)
        try:
            call = readiness.prepare(
                spec, service.code, service.modules, inline=service.is_inline(spec)
            )
        except errors.MoatKvError as exc:
            await self._wait_for(exc, news, fit=readiness.is_fit(spec, service.code))
            return
        await self._run(spec, call, signature, due)

    async def _wait_for(self, lack: errors.MoatKvError, news: anyio.Event, *, fit: bool) -> None:
        """Say what the job lacks, and wait for it; what only this node lacks is left to others."""
        text = lack.reason if isinstance(lack, errors.BadValue) else lack
        await self._held.note(reason=f"waiting: {text}", computed=None)
        if fit:
            self._turn.lacks_nothing()
        elif self._turn.leave():
            await self._held.release()
        await news.wait()

    async def _let_go(self, due: schedule.Due) -> None:
        """Others may have it; the state says why it is not running."""
        self._again = False
        if self._held.claim is None:
            return
        reason = self._held.state.reason
        if reason is None or reason.startswith("waiting: "):
            await self._held.note(reason=due.why, computed=due.at)
        await self._held.release()

    async def _forget(self, news: anyio.Event) -> None:
        """The job was deleted: its error is over, and its state goes."""
        await self._held.resolve_error()
        if self._service.is_parted:
            self._held.claim = None
            await news.wait()
            return
        await self._held.forget()
        if self._held.claim is not None:
            await self._held.release()
        else:
            await news.wait()  # until the mirrors show it

    # Running ------------------------------------------------------------------------------------

    async def _run(
        self,
        spec: JobSpec,
        call: readiness.Call,
        signature: readiness.Signature,
        due: schedule.Due,
    ) -> None:
        self._again = False
        # Somebody has acted if it runs again after it was parked.
        failures = 0 if schedule.is_parked(spec, self._held.state) else self._held.state.backoff
        await self._held.write(
            started=schedule.started_at(time.time(), due.at if spec.cron else spec.target),
            reason="running",
            computed=None,
            interrupted=False,
            backoff=failures,
            parked=None,
        )
        self._running = running.Running(
            self._root, self._service, self.entry, self._held, self._apart, signature
        )
        run = await self._running.see_through(spec, call)
        stop = self._running.stop
        # Stopped just now, the end of this run must still be told, or another node runs it again.
        # If its session is over there is nobody to tell it to.
        session = self._service.session
        await _to_the_end(
            lambda: self._finish(run, stop), lambda: 0.0 if session.ended else LEAVE_S
        )
        self._running = None

    async def _finish(
        self, run: execution.Run | process_run.ProcessRun, stop: running.Stop | None
    ) -> None:
        now, held = time.time(), self._held
        if stop is not None and run.error is not None:
            text = error_record.describe(run.error)
            logger.warning("%s: failed while it was being stopped: %s", self.path, text)
        if run.was_killed:
            text = f"it did not end within {running.STOP_S:g} s of being told to, and was killed"
            logger.warning("%s: %s", self.path, text)
            await held.record_error(admin.ScriptEnded(text))
        if stop == "moved":
            return  # with no end written: whoever has it next goes on
        if stop == "restart":
            held.state = dataclasses.replace(held.state, stopped=now, interrupted=True)
            self._again = True
        elif stop == "stopped":
            await held.write(stopped=now, interrupted=True, reason="stopped")
        elif run.error is not None:
            await self._failed(run.error, now)
        else:
            await self._succeeded(run.result, now)

    async def _succeeded(self, result: Any, now: float) -> None:
        await self._held.resolve_error()
        computed = self._next_due(now, 0).at
        try:
            await self._held.write(
                stopped=now, result=result, backoff=0, reason="done", computed=computed
            )
        except errors.MoatKvError as exc:
            # The server may know more reasons than were checked here.
            await self._failed(exc, now)

    async def _failed(self, error: BaseException, now: float) -> None:
        claim = self._held.claim
        is_over = (
            self._service.session.ended
        )  # and the claim with it, whatever the script made of it
        if is_over or (claim is not None and holding.is_loss(error, claim)):
            raise messages.LostClaim(error_record.describe(error)) from error
        failures = self._held.state.backoff + 1
        text = error_record.describe(error)
        logger.info("%s: failed: %s", self.path, text)
        await self._held.record_error(error)
        due = self._next_due(now, failures)
        if due.parked:
            logger.warning("job %s: %s", self.entry.absolute, due.why)
        await self._held.write(
            stopped=now,
            result=None,
            backoff=failures,
            reason=f"failed: {text}",
            computed=due.at,
            parked=self._digest(self.entry.spec()) if due.parked else None,
        )

    def _next_due(self, stopped: float, failures: int) -> schedule.Due:
        past = dataclasses.replace(self._held.state, stopped=stopped, backoff=failures)
        try:
            spec = self.entry.spec()
        except errors.BadValue:
            return schedule.Due(None, "the job's entry is wrong")
        return schedule.due(spec, past, stopped, key=self.entry.absolute.packed)

    async def _leave(self) -> None:
        """The runner ends, or the job is gone; what runs was cut off and may go on elsewhere."""
        if self._held.claim is None or self._service.session.ended:
            return
        if not self._client.connected:
            return  # the server ends the session, and the claim with it, after the grace
        with anyio.move_on_after(LEAVE_S, shield=True) as scope:
            try:
                if self._running is not None:
                    await self._held.write(reason="its runner was stopped", computed=None)
                # Where its script goes on, it is kept until this process, or its session, ends.
                if self.path not in self._root.left_behind:
                    await self._held.release()
            except (errors.MoatKvError, messages.LostClaim) as exc:
                self._tell_left(str(exc))
        if scope.cancelled_caught:
            self._tell_left("no answer from the server")

    def _tell_left(self, why: str) -> None:
        text = "job %s: others have it only when this runner's session has ended: %s"
        logger.warning(text, self.entry.absolute, why)


async def _to_the_end(
    finish: Callable[[], Awaitable[None]], limit_s: Callable[[], float] = lambda: LEAVE_S
) -> None:
    """Call it; cancelled meanwhile, it still has so many seconds to come to its end."""
    shielded = anyio.CancelScope(shield=True)
    failure: Exception | None = None

    async def limit() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            shielded.deadline = anyio.current_time() + limit_s()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(limit)
        with shielded:
            try:
                await finish()
            except Exception as exc:  # raised below, outside of the group that would wrap it
                failure = exc
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
