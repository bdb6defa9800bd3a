"""`moat kv run`, and `job`, which is the same: jobs, and the runners that run them.

Which jobs is said with `-n` and `-g`, see `placement`. Single jobs are in `at`.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import asyncclick as click

from moat_kv import config
from moat_kv.path import Path
from moat_kv_cli import (
    at,
    board,
    command,
    joblog,
    monitor,
    moving,
    output,
    parted,
    placement,
    progress,
    trying,
    why,
)
from moat_kv_runner import group_settings, node_facts

if TYPE_CHECKING:
    pass

_HELP = """Run jobs, and look at and change them.

Without -n: jobs for any node of the group. With -n NODE: jobs for that node. With -n -: jobs for
all nodes of the group.
"""


@click.group(
    cls=command.Group,
    help=_HELP,
    example="moat kv run all -g default\n"
    "moat kv run -n pi3 all\n"
    "moat kv run at a.question set -c the.answer -t 0",
)
@placement.options
def run() -> None:
    """See _HELP."""


@click.group(
    cls=command.Group,
    help=_HELP,
    short_help="Another name for `run`.",
    example="moat kv job run -g default\nmoat kv job at a.question state",
)
@placement.options
def job() -> None:
    """See _HELP."""


_nodes = click.option(
    "--nodes",
    type=click.IntRange(1),
    metavar="N",
    help="So many nodes make the group complete; long only. [as the group's settings say]",
)
_tags = click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="NAME",
    help="Something that this node has and jobs may ask for, such as 1wire; may be repeated.",
)
_weight = click.option(
    "--weight",
    type=command.FiniteRange(min=0),
    metavar="W",
    help="How many jobs it takes beside others; 0: only those that no other node takes. [1]",
)
_isolate = click.option(
    "--isolate",
    type=click.Choice(config.ISOLATIONS),
    help="Where jobs run that do not say, nor their group: each in a process of its own, or in "
    "this one, which small machines can bear. [process]",
)
_name = click.option(
    "--name", metavar="NAME", help="This node's name in the group. [the host's, without -n NODE]"
)


@click.command(
    "all",
    cls=command.Command,
    example="moat kv run all -g default\nmoat kv run -n pi3 all\nmoat kv run -n - all --nodes 3",
)
@placement.options
@_nodes
@_tags
@_weight
@_isolate
@_name
@command.pass_invocation
async def all_(
    invocation: command.Invocation, /, nodes: int | None, name: str | None, **own: Any
) -> int:
    """Run all jobs of one kind, those that -n and -g say, until SIGTERM or SIGINT."""
    which = placement.of(invocation)
    return await _serve(invocation, which, (which.kind,), name, nodes, own)


@click.command(
    cls=command.Command,
    example="moat kv run everything -g default\nmoat kv run everything --name pi3 --nodes 2",
)
@placement.options_with("This node's name, as --name.")
@_nodes
@_tags
@_weight
@_isolate
@_name
@command.pass_invocation
async def everything(
    invocation: command.Invocation, /, nodes: int | None, name: str | None, **own: Any
) -> int:
    """Run the jobs of all three kinds in one process, until SIGTERM or SIGINT."""
    which = placement.of(invocation)
    if which.kind == "all":
        raise command.fail("`everything` runs on one node; its name is no -")
    return await _serve(invocation, which, ("any", "at", "all"), name, nodes, own)


async def _serve(
    invocation: command.Invocation,
    which: placement.Placement,
    kinds: tuple[str, ...],
    name: str | None,
    nodes: int | None,
    own: Mapping[str, Any],
) -> int:
    from moat_kv_cli import staying
    from moat_kv_runner import runner

    named = None if which.kind == "all" else which.node
    if name is not None:
        placement.check_name(name)
        if named not in (None, name):
            raise command.fail(f"-n {named} and --name {name} differ")
    invocation.start_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What scripts print is to be seen at once, also in a file or a journal.
        sys.stdout.reconfigure(line_buffering=True)
    async with invocation.client() as client:
        ours = client.config.runner
        facts = node_facts.NodeFacts(
            tags=frozenset(own["tags"] or ours.tags),
            weight=ours.weight if own["weight"] is None else own["weight"],
        )
        serve = functools.partial(
            runner.run,
            client,
            kinds=kinds,
            group=which.group,
            name=name or named,
            nodes=nodes,
            facts=facts,
            on_stuck=_end_by_force,
            isolate=own["isolate"],
        )
        return await staying.until_signal(serve, lambda called: _told(called, kinds, which))


def _end_by_force(jobs: Sequence[Path]) -> None:
    """Scripts that do not heed their cancellation end with the process, and only so."""
    for path in jobs:
        print(f"moat: job {path} does not end", file=sys.stderr)
    print("moat: ended by force", file=sys.stderr, flush=True)
    os._exit(command.FAILED)


_KIND_WORDS = {"any": "any node", "at": "this node", "all": "all nodes"}


def _told(name: str, kinds: tuple[str, ...], which: placement.Placement) -> str:
    """Tell the user what is being served; returns the line for systemd."""
    words = ", ".join(_KIND_WORDS[kind] for kind in kinds)
    print(f"runner {name} is ready: jobs for {words} of group {which.group}", flush=True)
    return f"jobs of group {which.group}"


@click.command(
    cls=command.Command, example="moat kv run info\nmoat kv run -n - -g heating info -o json"
)
@placement.options
@output.option
@command.pass_invocation
async def info(invocation: command.Invocation, /, out: output.Printer) -> None:
    """Show a group: its nodes, its settings, its jobs and what became of them."""
    which = placement.of(invocation)
    async with invocation.client() as client:
        jobs, _ = placement.places_of(which, await config.load_places(client))
        settings = (await client.get(jobs)).get("value")
        members = await placement.members(client, which.group)
        rows = await progress.job_rows(client, which, Path())
    parsed = group_settings.parse(settings)
    problems = list(parsed.problems)
    nodes = {
        name: {
            "roles": list(each.roles),
            **node_facts.parse(each.info).as_info(),
            "drained": name in parsed.drained,
        }
        for name, each in members.items()
    }
    if not out.for_people:
        whose = {"kind": which.kind, "node": which.node, "group": which.group}
        out.value({**whose, "nodes": nodes, "settings": settings, "wrong": problems, "jobs": rows})
        return
    there = [f"{name} ({_node_words(facts)})" for name, facts in nodes.items()]
    facts: dict[str, Any] = {
        "jobs for": str(which),
        "nodes": there or "no runner serves this group now",
    }
    if settings is not None:
        facts["settings"] = settings
    if problems:
        facts["wrong settings"] = problems
    out.facts(facts)
    out.note("")
    at.print_jobs(out, rows)


def _node_words(facts: Mapping[str, Any]) -> str:
    """What a node serves, and what is special with it."""
    words = [*facts["roles"], *(f"has {tag}" for tag in facts["tags"])]
    if facts["weight"] != 1:
        words.append(f"weight {facts['weight']:g}")
    return ", ".join([*words, "drained"] if facts["drained"] else words)


for _verb in (why.why, joblog.log, joblog.runs, trying.try_, parted.parts, parted.let_go):
    at.at.add_command(_verb)
for _group in (run, job):
    _group.add_command(all_, "all" if _group is run else "run")
    _group.add_command(everything)
    _group.add_command(at.at)
    _group.add_command(info)
    _group.add_command(board.board)
    _group.add_command(monitor.monitor)
    _group.add_command(moving.drain)
    _group.add_command(moving.rebalance)
