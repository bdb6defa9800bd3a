"""A job that this runner holds: its claim, and what is written under it.

`supervision` decides, and has it done here: taking and releasing the claim, writing the state entry
(only with the claim's fence), recording and resolving the job's error. Trouble that passes is
waited for; a claim that has passed on is LostClaim.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from moat_kv import errors
from moat_kv.client import claiming, error_record
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path
from moat_kv_runner import admin, claims, messages
from moat_kv_runner.job import JobState, StateEntry, is_state, parse_state

if TYPE_CHECKING:
    from moat_kv_runner.roots import JobRoot
    from moat_kv_runner.serving import Service


logger = logging.getLogger(__name__)


class Holding:
    """One job's claim and state, as far as this runner has them."""

    def __init__(self, root: JobRoot, service: Service, path: Path) -> None:
        self._root = root
        self._service = service
        self._client = service.client
        self._job = root.base + path
        self._state_path = root.states.base + path
        self._state_entry = cast(StateEntry, root.states.follow(path, create=True))
        self._entry = cast(claims.ClaimEntry, root.claims.follow(path, create=True))
        self._path = path
        # Where it is told what becomes of it without a claim; only this runner does so there.
        self._apart_path = self._state_path
        if root.parts is not None:
            self._apart_path = root.parts.base / service.name + path
        #: None while another runner may have the job. Without agreement its fence is 0: `apart`.
        self.claim: claiming.Claim | None = None
        #: Others are to wait for this runner even if its claim is gone (`on_split: stick`).
        self.sticks = False
        #: What is stored, while there is a claim.
        self.state = JobState()
        # An open error record of this job may be there.
        self._may_have_failed = True
        # The last failure in a part; records need the network.
        self._unrecorded: BaseException | None = None

    @property
    def holder(self) -> str | None:
        """Who has the job, as the mirror of claims shows it."""
        return self._entry.holder

    @property
    def present(self) -> claims.ClaimEntry:
        """The claim, as the mirror shows it."""
        return self._entry

    @property
    def has_remains(self) -> bool:
        """There is a state, and nobody has the job."""
        return self._entry.is_free and (
            is_state(self._state_entry.value) or next(self._parts(), None) is not None
        )

    @property
    def is_apart(self) -> bool:
        """This runner has the job without a claim, in its part of the network."""
        return self.claim is not None and not self.claim.fence

    @property
    def shown(self) -> JobState:
        """What became of the job, as far as the mirrors show it.

        Of the job's own state and those of runs without a claim, over which nobody has decided yet,
        that of the run that began last.
        """
        own = self._state_entry.state
        open_ones = (each.state for _, each in self._parts() if each.state.settled is None)
        return max([own, *open_ones], key=lambda state: state.started or 0.0)

    def _parts(self) -> Iterator[tuple[str, StateEntry]]:
        parts = self._root.parts
        return parts.states_of(self._path) if parts is not None else iter(())

    @property
    def went_on_elsewhere(self) -> str | None:
        """Of a run without a claim: the other runner that goes on with the job."""
        for name, each in self._parts():
            # One that was decided on before this run says nothing of it.
            if name == self._service.name and each.state.started == self.state.started:
                return each.state.settled if each.state.settled != name else None
        return None

    @property
    def is_lost(self) -> bool:
        """The claim is seen to be gone, or somebody else's."""
        if self.claim is None:
            return True
        if self.is_apart:
            return self.went_on_elsewhere is not None
        shown, fence = self._entry.rev, self.claim.fence
        if shown > fence:
            return True
        return shown != fence and self._root.claims.seen_rev >= fence

    @property
    def why_lost(self) -> str | None:
        """What a person should know of a claim that was lost; None if it cannot be seen."""
        if self.claim is None or not self.is_lost:
            return None
        if self.is_apart:
            return f"runner {self.went_on_elsewhere} goes on with it, after the network was parted"
        if self.holder is not None:
            return f"runner {self.holder} has its claim now"
        return f"its claim, {self._entry.absolute}, was deleted; whose turn it is claims it anew"

    async def take(self, *, over: int = 0) -> bool:
        """Claim the job; False if somebody else was faster. Raises SessionExpired.

        `over`: the revision of a claim that is nobody's.
        """
        claim = await claims.take(
            self._client,
            self._entry.absolute,
            node=self._service.name,
            session=self._service.session,
            over=over,
        )
        if claim is None:
            return False
        self.claim = claim
        # What others wrote before they let go may not be in the mirror yet.
        stored = await claiming.patiently(self._client, lambda: self._client.get(self._state_path))
        known = [parse_state(stored.get("value")), self.shown]
        self.state = max(known, key=lambda state: state.started or 0.0)
        return True

    def take_apart(self) -> None:
        """Have the job without a claim; what is written for it then is written plainly."""
        self.claim = claiming.Claim(self._entry.absolute, 0)
        self.state = dataclasses.replace(self.shown, settled=None)

    async def confirm(self, *, over: int) -> bool:
        """Claim what this runner has without a claim; False if somebody else was faster."""
        claim = await claims.take(
            self._client,
            self._entry.absolute,
            node=self._service.name,
            session=self._service.session,
            over=over,
        )
        if claim is None:
            return False
        self.claim = claim
        await self.write()
        return True

    async def end_apart(self, winner: str | None) -> None:
        """The run without a claim was ended because another one goes on; what it has is kept."""
        for name, each in list(self._parts()):
            if name == self._service.name and each.state.running:
                over = dataclasses.replace(
                    each.state,
                    stopped=time.time(),
                    interrupted=True,
                    settled=each.state.settled or winner,
                )
                over = dataclasses.replace(
                    over, reason=f"runner {over.settled} went on with it, not this one"
                )
                await self._client.set(self._apart_path, over.as_value())

    async def keep_lost(self, winner: str) -> None:
        """Keep what this run under a claim has, beside that of the other one, which goes on."""
        claim = self._claimed()
        lost = dataclasses.replace(
            self.state,
            stopped=time.time(),
            interrupted=True,
            reason=f"runner {winner} went on with it when the network was whole again",
            settled=winner,
        )
        with fenced():
            await claiming.patiently(
                self._client,
                lambda: self._client.set(self._apart_path, lost.as_value(), fence=claim.guard),
            )

    async def release(self) -> None:
        """Let others have the job."""
        if self.is_apart and self.state.running:
            # Others of this part go on; they need not wait until this runner is gone.
            await self.write(stopped=time.time(), interrupted=True)
        elif self.claim is not None and self.state.sticks_to:
            self.sticks = False
            await self.write()
        claim, self.claim = self.claim, None
        if claim is not None and claim.fence:
            await claiming.release(self._client, claim)

    async def write(self, **changes: Any) -> None:
        """Change the state entry. Raises LostClaim."""
        claim = self._claimed()
        state = dataclasses.replace(
            self.state,
            pinged=time.time(),
            node=self._service.name,
            fence=claim.fence or None,
            sticks_to=self._service.name if self.sticks else None,
            **{"settled": None, **changes},
        )
        value = state.as_value()
        if self.is_apart:
            await self._write_apart(value)
            self.state = state
            return
        with fenced():
            await claiming.patiently(
                self._client, lambda: self._client.set(self._state_path, value, fence=claim.guard)
            )
        self.state = state

    async def _write_apart(self, value: dict[str, Any]) -> None:
        """Plainly; but once somebody has decided who goes on, that stands."""
        if self.went_on_elsewhere is not None:
            raise messages.LostClaim(self.why_lost)
        await claiming.patiently(self._client, lambda: self._client.set(self._apart_path, value))

    async def tidy(self) -> None:
        """A run of this runner without a claim is over, whatever its state says."""
        for name, each in self._parts():
            state = each.state
            if name == self._service.name and state.running and state.settled is None:
                over = dataclasses.replace(
                    state, stopped=time.time(), interrupted=True, reason="its runner was cut off"
                )
                await self._client.set(self._apart_path, over.as_value())

    async def tell_blocked(self, reason: str) -> None:
        """Say in the state why the job waits for a claim that is nobody's.

        Written without a claim, but only while that one is what it is, so by no means beside a
        runner that holds the job.
        """
        claim, entry = self._entry, self._state_entry
        state = dataclasses.replace(entry.state, pinged=time.time(), reason=reason)
        guard = (claim.absolute, claim.rev)
        expect = 0 if entry.value is NotGiven else entry.rev
        with contextlib.suppress(errors.Conflict, errors.GuardFailed):  # other runners say so too
            await self._client.set(self._state_path, state.as_value(), guard=guard, expect=expect)

    async def forget(self) -> None:
        """Delete the state entry of a job that was deleted. Raises LostClaim."""
        claim = self.claim
        if claim is not None and claim.fence:
            with fenced():
                await claiming.patiently(
                    self._client, lambda: self._client.delete(self._state_path, fence=claim.guard)
                )
        found = await self._client.get(self._state_path)
        # The mirror of jobs may lag behind that of states.
        if "value" in await self._client.get(self._job):
            return
        if "value" in found and claim is None:
            with contextlib.suppress(errors.Conflict):  # it was begun anew, or somebody was faster
                await self._client.delete(self._state_path, expect=found.rev)
        for _name, each in list(self._parts()):
            await self._client.delete(each.absolute)

    async def note(self, *, reason: str | None, computed: float | None) -> None:
        """Change the state entry if it says something else, or is another holder's."""
        claim, state = self._claimed(), self.state
        is_ours = (state.node, state.fence) == (self._service.name, claim.fence or None)
        if not is_ours or (state.reason, state.computed) != (reason, computed):
            await self.write(reason=reason, computed=computed)

    def _claimed(self) -> claiming.Claim:
        if self.claim is None:
            raise messages.claim_is_gone(self._job)
        return self.claim

    # The job's error ----------------------------------------------------------------------------

    async def record_error(self, error: BaseException) -> None:
        """The job has failed; the record is its own, or one that the script has made already."""
        self._may_have_failed = True
        if isinstance(error, messages.ErrorRecorded):
            return
        if self._service.is_parted:
            self._unrecorded = error
            return
        service = self._service
        with self._said():
            await claiming.patiently(
                self._client,
                lambda: error_record.record(
                    self._client,
                    admin.SUBSYSTEM,
                    self._job,
                    node=service.name,
                    exc=error,
                    places=service.places,
                ),
            )

    async def resolve_error(self) -> None:
        """The job works, or is gone."""
        self._unrecorded = None
        if not self._may_have_failed or self._service.is_parted:
            return
        service = self._service
        with self._said():
            await claiming.patiently(
                self._client,
                lambda: error_record.resolve(
                    self._client,
                    admin.SUBSYSTEM,
                    self._job,
                    by=error_record.BY_SUCCESS,
                    node=service.name if self._root.every_node else None,
                    places=service.places,
                ),
            )
        self._may_have_failed = False

    async def record_late(self) -> None:
        """What failed in a part, once the network is whole."""
        error, self._unrecorded = self._unrecorded, None
        if error is not None:
            await self.record_error(error)

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """A record that cannot be kept is no reason to run the job again."""
        try:
            yield
        except errors.MoatKvError:
            logger.exception("cannot keep the error record of %s", self._job)


def is_loss(error: BaseException, claim: claiming.Claim) -> bool:
    """Whether an error of a run, or a part of it, says that its claim is gone."""
    if isinstance(error, BaseExceptionGroup):
        return any(is_loss(each, claim) for each in error.exceptions)
    if isinstance(error, errors.StaleFence):
        return bool(error.path == str(claim.path))
    return isinstance(error, messages.LostClaim)


@contextlib.contextmanager
def fenced() -> Iterator[None]:
    """Raise LostClaim where a fence is stale."""
    try:
        yield
    except errors.StaleFence as exc:
        raise messages.lost_claim(exc) from exc
