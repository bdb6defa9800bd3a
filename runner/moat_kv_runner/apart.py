"""One job in a part of the network, and after it: what of `parting` needs eyes and hands.

While this runner's server is parted from the network, a job may run without a claim, as its
`on_split` allows; what becomes of it is then in a state of this runner's own (`PartRoot`), written
plainly, so that it comes into the network with everything else that was written here. Once the
network is whole, such a run asks for the claim. Whoever has that settles: the group's rule picks
one of the runs, the others are told in their states who goes on, and end.

`supervision` makes an `Apart` for each job; `obtaining` and `running` ask it. Nothing is run here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import anyio

from moat_kv import errors
from moat_kv.client import claiming
from moat_kv.path import Path
from moat_kv_runner import holding, job, parting, placing
from moat_kv_runner.job import JobSpec, JobState

if TYPE_CHECKING:
    from moat_kv_runner.roots import JobRoot
    from moat_kv_runner.serving import Service

logger = logging.getLogger(__name__)

#: The states of runs without a claim are below this, then the group, then the runner's name.
KIND = "each"
#: How long a run that shows as going on waits for its runner to be seen in the group, in seconds.
SEEN_S = 6.0
#: How often one that waits for the claim, or for such a runner, looks again, in seconds.
LOOK_S = 1.0


class PartRoot(job.StateRoot):
    """What became of a group's jobs for any node where they ran without a claim, by runner."""

    def states_of(self, path: Path) -> Iterator[tuple[str, job.StateEntry]]:
        """The state of one job on each runner that has one."""
        for child in self.values():
            found = child.get(path)
            if isinstance(found, job.StateEntry) and job.is_state(found.value):
                yield str(child.name), found


class Apart:
    """One job's runs without a claim, as this runner sees them."""

    def __init__(self, root: JobRoot, service: Service, path: Path, held: holding.Holding) -> None:
        self._root = root
        self._service = service
        self._client = service.client
        self._path = path
        self._held = held
        # Rivals that are no members (yet), by name, with the time when that was seen first.
        self._unseen: dict[str, float] = {}
        # What an earlier session of this runner has left is seen to.
        self._is_tidy = False

    # In a part ----------------------------------------------------------------------------------

    def may_go_on(self, spec: JobSpec) -> bool:
        """Whether a run without a claim is what the job wants."""
        return spec.on_split != "fenced"

    def loses_to(self, spec: JobSpec) -> str | None:
        """The other runner that goes on with what this one runs without a claim."""
        if not self._service.is_parted:
            return None  # whoever has the claim says so
        return parting.loses_to(self.part(spec), self._root.settings.reconcile)

    def part(self, spec: JobSpec) -> parting.Part:
        """What is seen of it where there is no agreement."""
        service, root = self._service, self._root
        holder = self._held.shown.node if self._held.shown.running else self._held.holder
        if spec.on_split == "stick":
            holder = self._held.shown.sticks_to
        if root.kind != "any":
            holder = service.name
        job_key = (root.base + self._path).packed
        return parting.Part(
            own_name=service.name,
            policy=spec.on_split,
            order=placing.order(job_key, service.nodes_for(root), spec),
            running=self._contenders(),
            holder=holder,
        )

    def _contenders(self) -> list[parting.Contender]:
        """Those that run it without a claim and are there."""
        return [self._contender(name, each.state) for name, each in self._rivals()]

    def _contender(self, name: str, state: JobState) -> parting.Contender:
        load = self._service.load_of(name)
        return parting.Contender(name=name, since=state.started or 0.0, load=load)

    def _rivals(self) -> Iterator[tuple[str, job.StateEntry]]:
        """Runs without a claim that go on, nobody having been picked; this runner's own too."""
        there = set(self._service.candidates(self._root) or ())
        for name, entry in self._open():
            if name == self._service.name:
                if self._held.is_apart and entry.state.running:
                    yield name, entry
            elif entry.state.running and name in there:
                yield name, entry

    def _open(self) -> Iterator[tuple[str, job.StateEntry]]:
        """All runs without a claim of which nobody has said yet who goes on."""
        parts = self._root.parts
        for name, entry in parts.states_of(self._path) if parts is not None else ():
            if entry.state.settled is None:
                yield name, entry

    async def lost(self, winner: str | None) -> None:
        """A run without a claim was ended here; its state shall say so. `winner`: who goes on."""
        if self._held.is_apart:
            try:
                await self._held.end_apart(winner)
            except claiming.PASSING as exc:
                logger.info("%s: the end of its run is not told: %s", self._path, exc)

    # Between runs -------------------------------------------------------------------------------

    async def agree(self, spec: JobSpec, *, may_have: bool) -> bool:
        """See to what is left of a time without agreement; False: all is to be judged anew.

        `may_have`: this runner may take the job. If not, and others wait for it, it says so.
        """
        held, is_parted = self._held, self._service.is_parted
        held.sticks = spec.on_split == "stick"
        if not self._is_tidy:
            await held.tidy()
            self._is_tidy = True
        if not is_parted:
            await held.record_late()
        if held.is_apart:
            if is_parted and self.may_go_on(spec):
                return True
            held.claim = None
        if held.claim is not None:
            return await self.settle() is None
        is_in_the_way = held.shown.sticks_to == self._service.name and not may_have
        if is_parted or not (self._has_ended_here or is_in_the_way):
            return True
        if not held.present.is_free or not await held.take():
            return True
        # What became of it here goes into the job's own state.
        await held.write()
        await self.settle()
        await held.release()
        return False

    # In touch -----------------------------------------------------------------------------------

    def waits_for(self, spec: JobSpec) -> str | None:
        """The runner to which a claim that is free is left."""
        return parting.waits_for(
            own_name=self._service.name,
            policy=spec.on_split if self._root.kind == "any" else "each",
            sticks_to=self._held.shown.sticks_to,
            rivals=[name for name, _ in self._rivals()],
        )

    @property
    def _has_ended_here(self) -> bool:
        """A run of this runner in a part is over, and its state is not in the job's own yet."""
        return any(
            name == self._service.name and not self._held.is_apart for name, _ in self._open()
        )

    @property
    def is_open(self) -> bool:
        """There is something to look at again without any news."""
        return self._held.is_apart or next(self._open(), None) is not None

    async def confirm(self) -> bool:
        """Ask for the claim for what runs without one; whether it has it now."""
        held, shown = self._held, self._held.present
        over = 0
        if not shown.is_free:
            # One that this very process had before the network parted is nobody else's.
            if shown.session not in self._service.former_sessions:
                return False
            over = shown.rev
        elif self._service.is_parted:
            return False
        if not await held.confirm(over=over):
            return False
        text = "job %s: %s has its claim again, after it ran without one"
        logger.warning(text, self._root.base + self._path, self._service.name)
        return True

    async def settle(self) -> str | None:
        """With the claim: say which run goes on. Returns the other runner that does, if one does.

        That one gets the claim. Runs whose runners are not seen yet are waited for by calling
        this again after `LOOK_S`.
        """
        held = self._held
        found = list(self._open())
        if not found or held.is_apart or held.claim is None:
            return None
        own = self._service.name
        rivals = [(name, each) for name, each in self._rivals() if name != own]
        if self._is_early({name for name, _ in rivals}):
            return None
        contenders = [self._contender(name, each.state) for name, each in rivals]
        if held.state.running:
            contenders.append(self._contender(own, held.state))
        rule = self._root.settings.reconcile
        won = parting.winner(rule, contenders) if contenders else own
        if rivals:
            text = "job %s: it ran on %s while the network was parted; %s goes on (%s)"
            names = ", ".join(sorted({each.name for each in contenders}))
            logger.warning(text, self._root.base + self._path, names, won, rule)
        if won != own:
            await self._yield_to(won)
            return won
        await held.write()
        for _name, entry in found:
            await self._tell_settled(entry, own)
        return None

    def _is_early(self, seen: set[str]) -> bool:
        """Whether some who seem to run it are not seen in the group, and may yet be."""
        now, own = anyio.current_time(), self._service.name
        unseen = {
            name for name, each in self._open() if each.state.running and name not in {*seen, own}
        }
        self._unseen = {name: self._unseen.get(name, now) for name in unseen}
        return any(now - since < SEEN_S for since in self._unseen.values())

    async def _tell_settled(self, entry: job.StateEntry, winner: str) -> None:
        claim = self._held.claim
        assert claim is not None
        value = dataclasses.replace(entry.state, settled=winner).as_value()
        # Changed or gone meanwhile: then it is looked at again.
        with holding.fenced(), contextlib.suppress(errors.Conflict):
            await claiming.patiently(
                self._client,
                lambda: self._client.set(
                    entry.absolute, value, fence=claim.guard, expect=entry.rev
                ),
            )

    async def _yield_to(self, winner: str) -> None:
        """Keep what this run has, and leave the claim to the other one."""
        held = self._held
        await held.keep_lost(winner)
        await held.release()
