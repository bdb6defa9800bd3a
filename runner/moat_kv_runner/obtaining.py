"""Getting a job for this runner: whether it may, when it is its turn, and the claim.

`supervision` has one `Obtaining` for each job and calls it while the job is due and not held here.
`placing` says whose turn it is; nothing here runs anything.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import anyio

from moat_kv.client.session import PINGS
from moat_kv.path import Path
from moat_kv_runner import apart, claims, holding, parting, placing
from moat_kv_runner.job import JobSpec

if TYPE_CHECKING:
    from moat_kv_runner.roots import JobRoot
    from moat_kv_runner.serving import Service

logger = logging.getLogger(__name__)

#: How long a job that was given up is left to others before it is asked for again, in seconds.
SHUN_S = 5.0
#: How long each place in the order waits for those before it, in a part, in seconds: for a state to
#: be written and seen, on one server.
APART_TURN_S = 1.0


class Obtaining:
    """See above; `obtain` is called until `held` has a claim."""

    def __init__(
        self,
        root: JobRoot,
        service: Service,
        job: Path,
        held: holding.Holding,
        apartness: apart.Apart,
    ) -> None:
        self._root = root
        self._service = service
        self._job = job
        self._held = held
        self._apart = apartness
        # From when the turn in placing counts: when the job became due and free.
        self._free_at: float | None = None
        # What it was counted with, in a part.
        self._part_order: tuple[str, ...] = ()
        # The revision of a claim that seems nobody's, and since when.
        self._stray = (0, 0.0)
        # This node lacks a package, and lets these others try.
        self._left_to: frozenset[str] = frozenset()
        # Others may have it, and go first until then.
        self._shunned_until = -math.inf

    def not_yet(self) -> None:
        """The job is not due; its turn counts anew when it is."""
        self._free_at = None

    def leave(self) -> bool:
        """What this node lacks others may have; whether there are others."""
        self._left_to = self._others()
        return bool(self._left_to)

    def lacks_nothing(self) -> None:
        """Nothing is left to others that only this node lacks."""
        self._left_to = frozenset()

    def shun(self) -> None:
        """Let others have it for a while."""
        self._shunned_until = anyio.current_time() + SHUN_S

    def may_have(self, spec: JobSpec) -> bool:
        """Whether this node has what the job requires, and takes jobs."""
        service = self._service
        is_drained = service.name in self._root.settings.drained
        is_shunned = anyio.current_time() < self._shunned_until
        return placing.suits(spec, service.facts) and not is_drained and not is_shunned

    def fits_elsewhere(self, spec: JobSpec) -> bool:
        """Whether another node could have it."""
        return any(name != self._service.name for name in self._order(spec))

    async def obtain(self, spec: JobSpec, news: anyio.Event, *, fit: bool) -> None:
        """Claim the job when it is this runner's turn; returns when there may be news."""
        if not self.may_have(spec):
            self._free_at = None
            wait_s = self._shunned_until - anyio.current_time()
            with anyio.move_on_after(wait_s if wait_s > 0 else None):
                await news.wait()
            return
        if self._service.is_parted:
            await self._begin_apart(spec, news)
            return
        if self._held.present.is_free and self._apart.waits_for(spec) is not None:
            self._free_at = None
            await news.wait()
            return
        is_left = not fit and self._left_to and self._others() == self._left_to
        if is_left or not self._held.present.is_free:
            self._free_at = None
            if is_left or not await self._take_stray(spec, news, fit=fit):
                await news.wait()
            return
        self._stray = (0, 0.0)
        now = anyio.current_time()
        if self._free_at is None:
            self._free_at = now
        wait_s = self._free_at + self._turn_s(spec, fit) - now
        if wait_s > 0:
            with anyio.move_on_after(wait_s):
                await news.wait()
            return
        self._free_at = None
        if not await self._held.take():
            # The mirror has not shown it yet; it will.
            await news.wait()

    async def _begin_apart(self, spec: JobSpec, news: anyio.Event) -> None:
        """Have the job without a claim when it is this runner's turn in its part."""
        part, now = self._apart.part(spec), anyio.current_time()
        turn = parting.turn(part)
        if turn is None or tuple(part.order) != self._part_order:
            self._free_at, self._part_order = None, tuple(part.order)
        if self._free_at is None and turn is not None:
            self._free_at = now
        wait_s = math.inf
        if turn is not None and self._free_at is not None:
            # Nobody else can be at work here still if this runner had it; else, until its next
            # sign of life, one whose session has ended may not know that.
            settle_s = 0.0 if part.holder == part.own_name else self._settle_s
            wait_s = self._free_at + settle_s + turn * APART_TURN_S - now
        if wait_s > 0:
            with anyio.move_on_after(wait_s):
                await news.wait()
            return
        self._free_at = None
        text = "job %s: it runs here without a claim: the server is cut off (on_split: %s)"
        logger.warning(text, self._job, spec.on_split)
        self._held.take_apart()

    @property
    def _settle_s(self) -> float:
        return 1.2 * self._service.session.ttl_s / PINGS

    async def _take_stray(self, spec: JobSpec, news: anyio.Event, *, fit: bool) -> bool:
        """Take the job over from a claim that has been nobody's for long enough.

        False if that is not so, and would not become so without news.
        """
        service, claim = self._service, self._held.present
        candidates = service.candidates(self._root)
        live = [service.name] if candidates is None else candidates
        is_anothers = claim.session is not None and claim.holder != service.name
        if spec.on_split == "stick" and is_anothers:
            return False  # its runner may be at work, wherever it is
        if not live or not claims.is_stray(claim.value, own_name=service.name, live=live):
            self._stray = (0, 0.0)
            return False
        now = anyio.current_time()
        after_s = claims.stray_s(claim.value, service.session) + self._turn_s(spec, fit)
        if self._stray[0] != claim.rev:
            self._stray = (claim.rev, now)
            if not claims.is_made(claim.value):
                reason = f"no runner has written its claim, {claim.absolute}; delete that"
                text = "job %s waits: %s, or it is taken over in %.0f s"
                logger.warning(text, self._job, reason, after_s)
                await self._held.tell_blocked(f"waiting: {reason}")
        wait_s = self._stray[1] + after_s - now
        if wait_s > 0:
            with anyio.move_on_after(wait_s):
                await news.wait()
        elif await self._held.take(over=claim.rev):
            logger.warning("job %s: its claim was nobody's, and is taken over", self._job)
        else:
            await news.wait()  # somebody else was faster
        return True

    def _turn_s(self, spec: JobSpec, fit: bool) -> float:
        if self._root.kind != "any":
            return 0.0
        nodes = self._service.nodes_for(self._root)
        name = self._service.name
        return placing.wait_s(self._job.packed, nodes, spec, own_name=name, fit=fit)

    def _order(self, spec: JobSpec) -> list[str]:
        return placing.order(self._job.packed, self._service.nodes_for(self._root), spec)

    def _others(self) -> frozenset[str]:
        """The other runners that may have the job."""
        candidates = self._service.candidates(self._root) or ()
        return frozenset(candidates) - {self._service.name}
