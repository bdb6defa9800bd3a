"""What the members of a cluster in a box say of themselves, for `moat kv cluster` and for tests.

Each server is asked by a client of its own, all at the same time; one that is frozen or hangs is
not waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import anyio.to_thread

import moat_kv
from moat_kv import config, errors
from moat_kv.testing import cluster_plan
from moat_kv.testing.cluster import Cluster

#: A server that does not answer within this time has nothing to say, in seconds.
ANSWER_S = 5.0
_LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One member as it is now; what is not known or has no meaning for it is None."""

    name: str
    kind: cluster_plan.Kind
    pid: int | None
    url: str
    state: Literal["up", "frozen", "cut", "dead"]
    """`cut`: it is up, and nothing comes through to it or from it."""
    attached: bool | None = None
    """A server: whether it is in touch with the network, by its own word."""
    outbox: int | None = None
    """A server: so many writes wait until it is in touch again."""
    revision: int | None = None
    conflicts: int | None = None
    """A server: so many conflicts were met when it came back, since its start."""
    via: str | None = None
    """A server: the NATS node that it is connected to. NATS: `leader` of the network."""


async def look(cluster: Cluster) -> list[Seen]:
    """All members, the NATS nodes first. Raises ClusterError if there is no cluster."""
    members, leader = await anyio.to_thread.run_sync(_members, cluster)
    found: dict[str, dict[str, Any]] = {}

    async def ask(member: cluster_plan.Member) -> None:
        found[member.name] = await _facts(cluster, member.url)

    async with anyio.create_task_group() as tasks:
        for member, state, _ in members:
            if member.kind == "server" and state in ("up", "cut"):
                tasks.start_soon(ask, member)
    seen = []
    for member, state, pid in members:
        facts = found.get(member.name, {})
        if member.name == leader:
            facts = {"via": "leader"}
        row = Seen(
            name=member.name, kind=member.kind, pid=pid, url=member.url, state=state, **facts
        )
        seen.append(row)
    return seen


async def until(
    cluster: Cluster, condition: Callable[[Sequence[Seen]], bool], limit_s: float
) -> bool:
    """Look again and again, until it is so or the time is over; whether it is so."""
    give_up_at = anyio.current_time() + limit_s
    while not condition(await look(cluster)):
        if anyio.current_time() > give_up_at:
            return False
        await anyio.sleep(_LOOK_S)
    return True


def is_settled(seen: Sequence[Seen]) -> bool:
    """Whether every server that is up is in touch, and nothing waits in any of them."""
    servers = [each for each in seen if each.kind == "server" and each.state == "up"]
    return all(each.attached and not each.outbox for each in servers)


def _members(
    cluster: Cluster,
) -> tuple[list[tuple[cluster_plan.Member, Any, int | None]], str | None]:
    """Each with its state and the id of its process; and who leads."""
    plan = cluster.plan
    found = []
    for member in plan.members:
        state: str = cluster.state(member.name)
        process = plan.processes.get(member.name)
        pid = process.pid if process is not None and state != "dead" else None
        if state == "up" and plan.is_cut(member.name):
            state = "cut"
        found.append((member, state, pid))
    return found, cluster.leader()


async def _facts(cluster: Cluster, url: str) -> dict[str, Any]:
    """What a server says of itself; nothing if it does not answer."""
    state: dict[str, Any] = {}
    with anyio.move_on_after(ANSWER_S):
        try:
            async with moat_kv.open_client(url, config=config.Config()) as client:
                state = await client.state()
        except errors.MoatKvError:
            return {}
    if not state:
        return {}
    engine = state["engine"]
    node = cluster.node_at(engine["server"]) if engine.get("server") else None
    return {
        "attached": engine["attached"],
        "outbox": engine["outbox"],
        "revision": state["revision"],
        "conflicts": engine["conflicts"],
        "via": node,
    }
