"""The job that a command names: where its entry and its states are, and what is in them.

For the verbs of `at`, and for all other commands about a single job. Of what it names it only ever
deletes states, and none that a runner has a claim on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from moat_kv import config, errors
from moat_kv.path import Path
from moat_kv_cli import command, entries, placement
from moat_kv_runner import roots

if TYPE_CHECKING:
    from moat_kv import Client


class Job:
    """One job: where its entry and its states are, and how it is called in messages."""

    def __init__(
        self,
        client: Client,
        which: placement.Placement,
        jobs: Path,
        states: Path,
        claims: Path,
    ) -> None:
        self.client = client
        self.which = which
        self.jobs = jobs  # where all of its kind and group are
        self.states = states
        self.claims = claims
        self.path = Path()
        #: Where jobs for any node have their states that ran without a claim.
        self.all_parts = Path()

    @classmethod
    async def of(cls, invocation: command.Invocation, client: Client) -> Job:
        """The job that the command names; it need not exist."""
        which = placement.of(invocation)
        places = await config.load_places(client)
        jobs, states = placement.places_of(which, places)
        job = cls(client, which, jobs, states, places.claim + which.prefix)
        job.path = invocation.here
        job.all_parts = roots.part_below(places, which.group)
        return job

    def part(self, node: str) -> Path:
        """Where its state is of when it ran on that node without a claim."""
        return self.all_parts / node + self.path

    async def parts(self) -> list[tuple[str, Path]]:
        """The same, by node, of those that have ever run any job so."""
        if self.which.kind != "any":
            return []
        nodes = [str(each.name) for each in await self.client.list(self.all_parts)]
        return [(node, self.part(node)) for node in sorted(nodes)]

    @property
    def place(self) -> Path:
        return self.jobs + self.path

    async def entry(self) -> Any:
        """The job's entry. Raises NotFound, which says whether the node is known."""
        result = await self.client.get(self.place)
        if "value" in result and self.path:
            return result
        raise await self.not_found()

    async def not_found(self) -> errors.NotFound:
        if self.which.kind == "at":
            nodes = await self.client.list(self.jobs % (len(self.which.group) + 1))
            if self.which.node not in [each.name for each in nodes]:
                return errors.NotFound("job at all for node", str(self.which.node))
        below = len(await self.client.list(self.place))
        name = f"{self.path} for {self.which}"
        return errors.NotFound("job", name, **entries.hint_below(below))

    async def state_of(self) -> dict[str, Any]:
        """What became of it: the states by node where all nodes run it, else one, named ``."""
        results = {
            name: await self.client.get(self.states + below)
            for name, below in (await self.below()).items()
        }
        return {name: each["value"] for name, each in results.items() if "value" in each}

    async def below(self, nodes: Iterable[str] = ()) -> dict[str, Path]:
        """Its paths below those of states and of claims, by node, or one named ``.

        `nodes`: some that count also if it has never run there.
        """
        if self.which.kind != "all":
            return {"": self.path}
        known = {str(each.name) for each in await self.client.list(self.states)}
        return {name: Path(name) + self.path for name in sorted(known.union(nodes))}

    async def forget(self) -> None:
        """Delete the states that no runner has a claim on; a runner deletes the others itself."""
        for below in (await self.below()).values():
            if "value" in await self.client.get(self.claims + below):
                continue
            state = await self.client.get(self.states + below)
            if "value" in state:
                with contextlib.suppress(errors.Conflict):  # a runner has taken it just now
                    await self.client.delete(self.states + below, expect=state.rev)
        for _node, path in await self.parts():
            await self.client.delete(path)
