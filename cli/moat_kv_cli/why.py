"""`moat kv run at PATH why`: in one line, why a job is not running now, and when it will be."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import asyncclick as click

from moat_kv.client import results
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path
from moat_kv_cli import command, one_job, output, placement
from moat_kv_runner import explaining, group_settings, node_facts
from moat_kv_runner import job as job_module
from moat_kv_runner.job import parse_state

#: How a span of time is said, the longest first: seconds, and the word.
_SPANS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@click.command(
    cls=command.Command,
    example="moat kv run at a.question why\nmoat kv run -n - at report why -o json",
)
@output.option
@command.pass_invocation
async def why(invocation: command.Invocation, /, out: output.Printer) -> None:
    """Tell in a line why a job is not running now, and when it will be."""
    async with invocation.client() as client:
        job = await one_job.Job.of(invocation, client)
        entry = (await job.entry())["value"]
        members = await placement.members(client, job.which.group)
        settings = group_settings.parse((await client.get(job.jobs)).get("value"))
        rows = []
        for node, below in (await _places(job, members)).items():
            known = explaining.Known(
                job=entry,
                key=job.place.packed,
                defaults=settings.defaults,
                state=parse_state((await client.get(job.states + below)).get("value")),
                claim=(await client.get(job.claims + below)).get("value", NotGiven),
                runners=_candidates(job, node, members),
                drained=settings.drained,
                whose=f"node {node}" if node else str(job.which),
                kind=job.which.kind,
                parted=members.parted,
                parts=await _parts(job, members),
                reconcile=settings.reconcile,
            )
            found = explaining.why(known, time.time())
            rows.append({"node": node or None, "why": found.text, "due": found.at})
    _print(out, rows)


async def _places(job: one_job.Job, members: Mapping[str, results.MemberInfo]) -> dict[str, Path]:
    """Where its states and claims are, by node; by no name where there is one only."""
    there = [name for name, each in members.items() if "all" in each.roles]
    return await job.below(there)


async def _parts(
    job: one_job.Job, members: Mapping[str, results.MemberInfo]
) -> dict[str, job_module.JobState]:
    """What became of it where it ran without a claim."""
    if job.which.kind != "any":
        return {}
    found = {name: await job.client.get(job.part(name)) for name in members}
    return {
        name: parse_state(each.value)
        for name, each in found.items()
        if job_module.is_state(each.get("value"))
    }


def _candidates(
    job: one_job.Job, node: str, members: Mapping[str, results.MemberInfo]
) -> dict[str, node_facts.NodeFacts]:
    which = job.which
    wanted = node or which.node if which.kind != "any" else None
    return {
        name: node_facts.parse(each.info)
        for name, each in members.items()
        if which.kind in each.roles and wanted in (None, name)
    }


def _print(out: output.Printer, rows: list[dict[str, Any]]) -> None:
    facts = [{name: value for name, value in row.items() if value is not None} for row in rows]
    if not out.for_people:
        out.value(facts if len(facts) != 1 or "node" in facts[0] else facts[0])
        return
    now = time.time()
    if not facts:
        out.line("no runner has ever served it")
    for row in facts:
        begin = f"{row['node']}: " if "node" in row else ""
        out.line(f"{begin}{_when(row.get('due'), now)}{row['why']}")


def _when(due: float | None, now: float) -> str:
    if due is None:
        return ""
    if due <= now:
        return f"due for {_span(now - due)}: "
    today = datetime.fromtimestamp(now).date()
    return f"due at {output.local_time(due, today)}, in {_span(due - now)}: "


def _span(seconds: float) -> str:
    """A span of time in one unit."""
    for size, word in _SPANS:
        if seconds >= 2 * size or size == 1:
            return f"{seconds / size:.0f} {word}"
    raise AssertionError("the last unit fits all")
