"""How the processes of a cluster in a box are started, and how a NATS node tells how it is.

For `cluster`, which keeps the processes; servers and links say by themselves when they are ready.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import pathlib
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from moat_kv.testing import background, cluster_netns, cluster_plan, nats

#: A process has to be ready within this time, in seconds.
READY_S = 40.0
_ANSWER_S = 5.0
_LOOK_S = 0.03


def log(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file that a process of the cluster in that folder writes its log to."""
    return folder / name / "log"


def start(
    plan: cluster_plan.Plan,
    members: Sequence[cluster_plan.Member],
    folder: pathlib.Path,
    environments: Mapping[str, Mapping[str, str]],
) -> None:
    """Start these together, and wait until all are ready; the plan in the folder has them.

    `environments`: by name, of links and servers. Raises NotStarted, NatsFailed.
    """
    processes = dict(plan.processes)
    with contextlib.ExitStack() as stack:
        starting: dict[str, background.Starting] = {}
        for each in members:
            command, into = words(plan, each, folder), log(folder, each.name)
            if each.kind == "nats":
                processes[each.name] = background.start(command, log=into)
            else:
                begun = background.Starting(command, log=into, environment=environments[each.name])
                stack.callback(begun.close)
                starting[each.name] = begun
                processes[each.name] = begun.process
            # At once: whatever happens now, it is known to be ours.
            plan = dataclasses.replace(plan, processes=dict(processes))
            cluster_plan.save(plan, folder)
        for each in members:
            try:
                if each.kind == "nats":
                    wait_for_nats(plan, each, log(folder, each.name))
                else:
                    starting[each.name].wait(READY_S)
            except background.NotStarted as exc:
                raise background.NotStarted(f"{each.name} did not start: {exc}") from exc


def words(plan: cluster_plan.Plan, member: cluster_plan.Member, folder: pathlib.Path) -> list[str]:
    """The command of one process of the cluster in that folder. Raises NatsFailed."""
    place = folder / member.name
    if member.kind == "nats":
        return _in_place(plan, member, [nats.program(), "-c", str(place / "nats.conf")])
    if member.kind == "links":
        return [sys.executable, "-m", "moat_kv.testing.cluster_links", str(folder)]
    server = [sys.executable, "-m", "moat_kv_cli", "kv", "server", member.name, "--verbose"]
    server += ["--host", "127.0.0.1", "--port", str(member.port), "--data", str(place)]
    server += ["--engine", cluster_plan.engine_url(plan, member)]
    if member.socket:
        server += ["--unix", member.socket]
    return _in_place(plan, member, [*server, "--ready-fd", str(background.READY_FD)])


def _in_place(
    plan: cluster_plan.Plan, member: cluster_plan.Member, command: list[str]
) -> list[str]:
    return cluster_netns.words(plan, member.name, command) if plan.netns else command


def wait_for_nats(plan: cluster_plan.Plan, member: cluster_plan.Member, file: pathlib.Path) -> None:
    """Until it serves, and has its part in the cluster if it can have one. Raises NotStarted."""
    others = [each.name for each in plan.of_kind("nats") if each != member]
    running = [name for name in others if _is_up(plan, name)]
    is_alone = len(running) < len(others) or any(member.name in pair for pair in plan.cuts)
    query = "?js-server-only=true" if is_alone else ""
    give_up_at = time.monotonic() + READY_S
    while not _is_healthy(plan, member, query):
        if not _is_up(plan, member.name):
            raise background.NotStarted(background.end_of(file))
        if time.monotonic() > give_up_at:
            raise background.NotStarted(f"not ready within {READY_S:g} s")
        time.sleep(_LOOK_S)


def leader(plan: cluster_plan.Plan) -> str | None:
    """The NATS node that says of itself that it leads the network's stream."""
    nodes = plan.of_kind("nats")
    for each in nodes:
        copies = _copies(plan, each) if _is_up(plan, each.name) else {}
        if copies and (len(nodes) == 1 or copies.get("leader") == each.name):
            return each.name
    return None


def have_whole_copies(plan: cluster_plan.Plan) -> bool:
    """Whether every NATS node has all of the stream, by the leader's word and by its own."""
    nodes = plan.of_kind("nats")
    return any(_has_led_all_to_the_end(plan, each) for each in nodes) and all(
        _is_healthy(plan, each) for each in nodes
    )


def _has_led_all_to_the_end(plan: cluster_plan.Plan, member: cluster_plan.Member) -> bool:
    """Whether a NATS node leads the network's stream, and says that all others have all of it."""
    copies = _copies(plan, member)
    return copies.get("leader") == member.name and all(
        each.get("current") and not each.get("lag") for each in copies.get("replicas", ())
    )


def _copies(plan: cluster_plan.Plan, member: cluster_plan.Member) -> dict[str, Any]:
    """What a NATS node says of the copies of the network's stream; nothing if it has none."""
    try:
        found = json.loads(_told(plan, member, "jsz?streams=true"))
    except OSError:
        return {}
    for account in found.get("account_details", ()):
        for stream in account.get("stream_detail", ()):
            if stream["name"].lower().endswith(cluster_plan.NETWORK):
                cluster: dict[str, Any] = stream.get("cluster") or {"leader": member.name}
                return cluster
    return {}


def _is_up(plan: cluster_plan.Plan, name: str) -> bool:
    process = plan.processes.get(name)
    return process is not None and background.state(process) == "up"


def _is_healthy(plan: cluster_plan.Plan, member: cluster_plan.Member, query: str = "") -> bool:
    """Whether a NATS node says that it serves, and has all that the others have."""
    try:
        _told(plan, member, f"healthz{query}")
    except OSError:  # nobody there, or 503
        return False
    return True


def _told(plan: cluster_plan.Plan, member: cluster_plan.Member, what: str) -> bytes:
    """What a node's monitor answers. Raises OSError, also for any answer but 200."""
    url = f"http://127.0.0.1:{member.monitor_port}/{what}"

    def ask() -> bytes:
        try:
            with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:
                return bytes(answer.read())
        except http.client.HTTPException as exc:
            raise ConnectionError(f"{member.name} was gone amid its answer") from exc

    return cluster_netns.within(plan, member.name, ask) if plan.netns else ask()
