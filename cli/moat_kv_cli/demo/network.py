"""The demonstration's three servers on one network, of which one is killed: `./dev demo --cluster`.

`children` starts it in place of its one server; `play` kills the server that everybody is connected
to, and sees whether all jobs go on through another one, without a restart.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import anyio

import moat_kv
from moat_kv import Path, config, errors
from moat_kv.testing import cluster, nats
from moat_kv_cli import command
from moat_kv_cli.demo import findings

#: How long a server may take to say how many are connected to it, in seconds.
ANSWER_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Polls:
    """What the any-node job says of itself at one moment."""

    node: str
    fence: int
    count: int
    runs: Mapping[Path, tuple[str, int, float]]
    """Every job's run that lasts, by its state's path: its node, its fence, when it began."""


class Network:
    """Three servers and three NATS nodes in a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._box = cluster.Cluster(folder)

    def start(self) -> tuple[str, ...]:
        """Start it; the servers' URLs. Raises Refused."""
        try:
            self._box.up(nodes=3, servers=3)
        except (cluster.ClusterError, nats.NatsFailed) as exc:
            raise command.Refused(str(exc)) from exc
        return self._box.urls

    @property
    def pids(self) -> dict[str, int]:
        """Of those that live, by name."""
        plan = self._box.plan
        names = [each.name for each in plan.members]
        return {name: self._box.pid(name) for name in names if self._box.state(name) != "dead"}

    def kill(self, name: str) -> None:
        self._box.kill(name)

    def end(self) -> None:
        if self._box.exists:
            self._box.down()

    async def busiest(self) -> str:
        """The server with the most connections. All clients have one list, so it is that of all."""
        found = {name: await _connections(self._box.url(name)) for name in self._box.servers}
        return max(found, key=lambda name: found[name])


async def _connections(url: str) -> int:
    """How many are connected to a server, we not among them; -1 if it does not answer."""
    with anyio.move_on_after(ANSWER_S):
        try:
            async with moat_kv.open_client(url, config=config.Config()) as client:
                return int((await client.state())["connections"]) - 1
        except errors.MoatKvError:
            return -1
    return -1


def finding(killed: str | None, before: Polls | None, after: Polls | None) -> findings.Finding:
    """Whether all jobs went on after their node's server was killed, and none was started anew."""
    name = "fail-over"
    if killed is None or before is None or after is None:
        text = "no server was killed" if killed is None else f"after {killed} nobody polled"
        return findings.Finding(name=name, good=False, text=text)
    way = f"after {killed}, the server, was killed, {after.node} went on"
    anew = sorted(path for path, run in before.runs.items() if after.runs.get(path) != run)
    if anew or (before.node, before.fence) != (after.node, after.fence):
        text = f"{way}; started anew: {', '.join(map(str, anew)) or 'the polls'}"
        return findings.Finding(name=name, good=False, text=text)
    jobs = "1 job" if len(before.runs) == 1 else f"{len(before.runs)} jobs"
    text = (
        f"{way} with all of its {jobs}, none was restarted "
        f"(polls: fence {after.fence}, {before.count} to {after.count})"
    )
    return findings.Finding(name=name, good=bool(before.runs), text=text)
