"""One process that runs jobs: for one kind of runner, or for all of them, in one group.

The command line calls `run`, and ends it by cancellation: jobs are cancelled, claims released, the
session closed. The way of a job, in files: `roots` (where it is), `job` (what it says),
`supervision` (its life here), `schedule` and `placing` (when, and who), `claims` and `holding`
(whose it is), `readiness` (with what), `running` and `execution` (the run), `admin`, `feeds`,
`info_queue` and `messages` (what the script sees). `serving` holds it together.
"""

from __future__ import annotations

from collections.abc import Collection

import anyio
import anyio.abc

from moat_kv import config, errors
from moat_kv.client.client import Client
from moat_kv.path import Path
from moat_kv_runner import node_facts, roots, serving

#: The kinds of runner: any node of the group, this node, every node of the group.
KINDS = ("any", "at", "all")


async def run(
    client: Client,
    *,
    kinds: Collection[str] = KINDS,
    group: Path | str = roots.DEFAULT_GROUP,
    name: str | None = None,
    nodes: int | None = None,
    places: config.Places | None = None,
    ttl_s: float | None = None,
    grace_s: float | None = None,
    facts: node_facts.NodeFacts | None = None,
    on_stuck: serving.OnStuck | None = None,
    isolate: str | None = None,
    task_status: anyio.abc.TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run the group's jobs of these kinds until cancelled; never returns.

    `name` is this runner's in the group, by default the configuration's, else the host's; `nodes`
    is N, how many runners make the group complete, by default as the group's settings say.
    `ttl_s` and `grace_s` are those of its session (see `Client.session`): how soon others take over
    when it falls silent, or its line breaks; by default the configuration's, else the server's.
    `facts`: this node's tags and weight, by default those of the configuration. `on_stuck` is
    called at the end with the jobs whose scripts do not end although they were cancelled
    `running.STOP_S` ago, before their claims pass on: whoever has the process to itself should end
    it there. Without it their writes are refused, and they keep `client` from closing. `isolate`:
    where jobs run that do not say, nor their group, `process` or `inline`, by default as the
    configuration says. `task_status` is told the name when jobs can run.

    Raises NameTaken if another runner has the name, BadConfig for a name that cannot be one, or for
    times that do not go together.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds:
        raise errors.BadConfig("kinds", f"some of {', '.join(KINDS)}, not {sorted(kinds)}")
    if isinstance(group, str):
        group = Path(group)
    name = roots.runner_name(client, name)
    places = places or await config.load_places(client)
    mirrors = [
        await roots.ROOTS[kind].as_handler(
            client, subpath=group, places=places, name=name, nodes=nodes, serve=False
        )
        for kind in KINDS
        if kind in kinds
    ]
    service = await serving.Service.make(
        client,
        mirrors,
        name=name,
        group=group,
        places=places,
        ttl_s=ttl_s,
        grace_s=grace_s,
        facts=facts,
        on_stuck=on_stuck,
        isolate=isolate,
    )
    await service.serve(task_status=task_status)
