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
        #: None while another runner may have the job.
        self.claim: claiming.Claim | None = None
        #: What is stored, while there is a claim.
        self.state = JobState()
        # An open error record of this job may be there.
        self._may_have_failed = True

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
        return self._entry.is_free and is_state(self._state_entry.value)

    @property
    def is_lost(self) -> bool:
        """The claim is seen to be gone, or somebody else's."""
        if self.claim is None:
            return True
        shown, fence = self._entry.rev, self.claim.fence
        if shown > fence:
            return True
        return shown != fence and self._root.claims.seen_rev >= fence

    @property
    def why_lost(self) -> str | None:
        """What a person should know of a claim that was lost; None if it cannot be seen."""
        if self.claim is None or not self.is_lost:
            return None
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
        self.state = parse_state(stored.get("value"))
        return True

    async def release(self) -> None:
        """Let others have the job."""
        claim, self.claim = self.claim, None
        if claim is not None:
            await claiming.release(self._client, claim)

    async def write(self, **changes: Any) -> None:
        """Change the state entry. Raises LostClaim."""
        claim = self._claimed()
        state = dataclasses.replace(
            self.state,
            pinged=time.time(),
            node=self._service.name,
            fence=claim.fence,
            **changes,
        )
        value = state.as_value()
        with fenced():
            await claiming.patiently(
                self._client, lambda: self._client.set(self._state_path, value, fence=claim.guard)
            )
        self.state = state

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
        if claim is not None:
            with fenced():
                await claiming.patiently(
                    self._client, lambda: self._client.delete(self._state_path, fence=claim.guard)
                )
            return
        found = await self._client.get(self._state_path)
        # The mirror of jobs may lag behind that of states.
        if "value" in found and "value" not in await self._client.get(self._job):
            with contextlib.suppress(errors.Conflict):  # it was begun anew, or somebody was faster
                await self._client.delete(self._state_path, expect=found.rev)

    async def note(self, *, reason: str | None, computed: float | None) -> None:
        """Change the state entry if it says something else, or is another holder's."""
        claim, state = self._claimed(), self.state
        is_ours = (state.node, state.fence) == (self._service.name, claim.fence)
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
        if not self._may_have_failed:
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
