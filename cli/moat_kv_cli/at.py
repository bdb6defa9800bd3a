"""`moat kv run ... at PATH [verb]`: single jobs.

A job is an entry that the user writes; what becomes of it is in a state entry that only runners
write. The verbs here read both, and write the first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import asyncclick as click

from moat_kv import config, errors
from moat_kv.path import Path
from moat_kv_cli import (
    command,
    entries,
    isolation,
    one_job,
    output,
    placement,
    plain,
    progress,
    values,
    verbs,
)
from moat_kv_cli import timing as job_timing
from moat_kv_runner import claims as made_claims
from moat_kv_runner import job as spec
from moat_kv_runner import parting

if TYPE_CHECKING:
    from moat_kv import Client


async def _base(invocation: command.Invocation, client: Client) -> Path:
    jobs, _ = placement.places_of(placement.of(invocation), await config.load_places(client))
    return jobs


@click.group(
    cls=verbs.PathGroup,
    base=_base,
    example="moat kv run at a.question set -c the.answer -t 0\nmoat kv run at a.question state -r",
)
@placement.options
def at() -> None:
    """Look at and change jobs. PATH alone prints the job; `: list` lists all of the group."""


@at.command(example="moat kv run at a.question\nmoat kv run -n pi3 at onewire.temperatures -o json")
@output.option
@command.pass_invocation
async def get(invocation: command.Invocation, /, out: output.Printer) -> None:
    """Print a job as it is stored."""
    async with invocation.client() as client:
        job = await one_job.Job.of(invocation, client)
        result = await job.entry()
    out.value(result["value"])


@at.command("list", example="moat kv run at : list\nmoat kv run -n - at : list -o jsonl")
@output.option
@command.pass_invocation
async def list_(invocation: command.Invocation, /, out: output.Printer) -> None:
    """List the jobs at PATH and below, with what became of them."""
    async with invocation.client() as client:
        rows = await progress.job_rows(client, placement.of(invocation), invocation.here)
    print_jobs(out, rows)


def print_jobs(out: output.Printer, rows: list[dict[str, Any]]) -> None:
    """Print what `progress.job_rows` has found."""
    shown = map(progress.for_people, rows) if out.for_people else rows
    out.rows(progress.COLUMNS, list(shown))


@at.command(
    "set",
    example="moat kv run at a.question set -c the.answer -t 0\n"
    "moat kv run -n pi3 at blink set -c blink -t 0 -r 60 -e pin 17\n"
    "moat kv run at report set --limit memory_mb 200 --env PORT 5\n"
    "moat kv run at report set -c report --cron '0 7 * * mon-fri' --zone Europe/Berlin",
)
@click.option(
    "-c", "--code", type=verbs.PROCEDURE, metavar="PATH", help="The procedure that it runs."
)
@click.option(
    "-C",
    "--copy",
    type=verbs.PathType(_base),
    metavar="JOB",
    help="Begin as a copy of that job, but for its time.",
)
@job_timing.options
@click.option(
    "--require",
    multiple=True,
    metavar="TAG",
    help="Run only on nodes that have this; may be repeated; -: on any.",
)
@click.option(
    "--prefer",
    multiple=True,
    metavar="TAG",
    help="Rather on nodes that have this; may be repeated; -: on any.",
)
@isolation.options
@click.option(
    "--on-split",
    type=click.Choice(parting.POLICIES),
    help="While the network is parted: run once in each part, only under a claim, or only where it"
    " was. [each]",
)
@click.option("-i", "--info", metavar="TEXT", help="What it is for, in a line.")
@values.options
@output.option
@command.pass_invocation
async def set_(
    invocation: command.Invocation,
    /,
    code: Path | None,
    copy: Path | None,
    require: tuple[str, ...],
    prefer: tuple[str, ...],
    on_split: str | None,
    info: str | None,
    timing: Mapping[str, Any],
    process: Mapping[str, Any],
    out: output.Printer,
    texts: tuple[tuple[str, str], ...],
    literals: tuple[tuple[str, str], ...],
    paths: tuple[tuple[str, str], ...],
    yaml_file: str | None,
) -> None:
    """Make or change a job; what is not given stays. The value options are data for its code."""
    data = values.read(texts, literals, paths, yaml_file)
    tags = {"require": require or None, "prefer": prefer or None}
    attributes: dict[str, Any] = {"code": code, "info": info, "on_split": on_split}
    attributes |= {key: _tags(key, each) for key, each in tags.items()}
    attributes = {key: value for key, value in attributes.items() if value is not None}
    if not attributes and not data and copy is None and not timing and not process:
        raise command.fail("nothing to set; a job needs code, -c PATH")
    if not invocation.here:
        raise command.fail("a job needs a path below the root")
    async with invocation.client() as client:
        job = await one_job.Job.of(invocation, client)
        base = await _copied(client, job.jobs, copy)

        def changed(old: Any) -> dict[str, Any]:
            value = dict(base if base is not None else old if isinstance(old, dict) else {})
            value.update(attributes)
            job_timing.change(value, timing)
            isolation.change(value, process)
            if data:
                value["data"] = data.apply(value.get("data", values.NOTHING))
            if "code" not in value:
                raise command.fail(f"no job {job.path} yet; say what it runs with -c PATH")
            spec.parse_spec(value)
            return value

        result = await entries.change(client, job.place, changed)
        if code is not None:
            await _warn_without_code(client, code)
    out.done({"path": str(job.path), "rev": result.rev, "at": result.at})


def _tags(name: str, given: tuple[str, ...] | None) -> list[str] | None:
    if given is None:
        return None
    if given == ("-",):
        return []
    if "-" in given:
        raise command.fail(f"--{name} -: any node will do, so no other tag goes with it")
    if "" in given:
        raise command.fail(f"--{name}: a tag is not empty")
    return list(given)


async def _copied(client: Client, jobs: Path, copy: Path | None) -> dict[str, Any] | None:
    """Another job's attributes, but for its time. Raises NotFound."""
    if copy is None:
        return None
    result = await client.get(jobs + copy)
    if "value" not in result or not copy:
        raise errors.NotFound("job", str(copy))
    return {key: value for key, value in result["value"].items() if key != "target"}


async def _warn_without_code(client: Client, code: Path) -> None:
    places = await config.load_places(client)
    if "value" not in await client.get(places.proc + code):
        click.echo(f"moat: there is no procedure {code} yet; the job waits for it", err=True)


@at.command(example="moat kv run at a.question state\nmoat kv run at a.question state -r")
@click.option("-r", "--result", "only_result", is_flag=True, help="Only what it returned, bare.")
@output.option
@command.pass_invocation
async def state(invocation: command.Invocation, /, only_result: bool, out: output.Printer) -> None:
    """Print what became of a job: when it ran, where, and what it returned."""
    async with invocation.client() as client:
        job = await one_job.Job.of(invocation, client)
        asked = (await job.entry())["value"]
        found = await job.state_of()
        claim = (await client.get(job.claims + job.path)).get("value") if not found else None
    if not found:
        what = "result of job" if only_result else "state of job"
        why = _why_not(asked)
        if claim is not None and not made_claims.is_made(claim):
            why = f"no runner has written its claim, {job.claims + job.path}; delete that"
        raise errors.NotFound(what, str(job.path), hint=why)
    if only_result:
        _print_results(found, job.path, out if out.asked else output.Printer("value"))
    elif job.which.kind == "all":
        columns = ["node", "started", "stopped", "result", "backoff", "reason"]
        out.rows(columns, [{**each, "node": node} for node, each in found.items()])
    else:
        out.facts(found[""])


def _why_not(asked: Any) -> str:
    """Why no runner has written a state of a job."""
    if isinstance(asked, dict) and asked.get("enabled") is False:
        return "it is disabled"
    if isinstance(asked, dict) and asked.get("target") is None:
        return "it is not to be started; `set -t 0` starts it now"
    return "no runner has taken it yet"


def _no_result(path: Path, why: str) -> errors.NotFound:
    return errors.NotFound("result of job", str(path), hint=why)


def _print_results(states: dict[str, Any], path: Path, out: output.Printer) -> None:
    """The results alone; where all nodes run the job, a line for each that has one."""
    results = {node: each["result"] for node, each in states.items() if "result" in each}
    if not results:
        for node, each in states.items():
            _check_ended(path, spec.parse_state(each))
            results[node] = None
    if "" in results:
        out.value(results[""])
    elif out.format == "value":
        for node, result in results.items():
            out.line(f"{node}  {plain.inline(result)}")
    else:
        out.value(results)


def _check_ended(path: Path, state: spec.JobState) -> None:
    """A run that returned nothing is fine; raises if there is no result for another reason."""
    if state.backoff:
        raise command.Refused(f"job {path}: {state.reason or 'failed'}")
    if state.started is None or state.running or state.interrupted:
        raise _no_result(path, state.reason or "its run has not ended yet")


@at.command(example="moat kv run at a.question delete")
@command.pass_invocation
async def delete(invocation: command.Invocation, /) -> None:
    """Delete a job, and what became of it; if it runs, its runner stops it."""
    async with invocation.client() as client:
        job = await one_job.Job.of(invocation, client)
        await job.entry()
        await client.delete(job.place)
        await job.forget()


@at.command(example="moat kv run at a.question restart")
@command.pass_invocation
async def restart(invocation: command.Invocation, /) -> None:
    """Start a job now, once more; if it runs, stop it first."""
    async with invocation.client() as client:
        job = await one_job.Job.of(invocation, client)
        await job.entry()
        now = time.time()
        await _set(job, restart=now, target=now)


@at.command(example="moat kv run at a.question enable")
@command.pass_invocation
async def enable(invocation: command.Invocation, /) -> None:
    """Let a job run again that was disabled."""
    async with invocation.client() as client:
        job = await one_job.Job.of(invocation, client)
        await job.entry()
        await _set(job, enabled=True)


@at.command(example="moat kv run at a.question disable")
@command.pass_invocation
async def disable(invocation: command.Invocation, /) -> None:
    """Stop a job and do not start it, until it is enabled."""
    async with invocation.client() as client:
        job = await one_job.Job.of(invocation, client)
        await job.entry()
        await _set(job, enabled=False)


async def _set(job: one_job.Job, **attributes: Any) -> None:
    """Change some of a job's attributes."""

    def changed(old: Any) -> dict[str, Any]:
        if not isinstance(old, dict):
            raise errors.BadValue(f"job {job.path}: a job is a mapping, not {old!r}")
        return {**old, **attributes}

    await entries.change(job.client, job.place, changed)


@at.command(example='moat kv data "$(moat kv run at a.question path)" history')
@click.option("--state", "of_state", is_flag=True, help="Of the state entry.")
@command.pass_invocation
async def path(invocation: command.Invocation, /, of_state: bool) -> None:
    """Print where in the tree a job is."""
    async with invocation.client() as client:
        job = await one_job.Job.of(invocation, client)
    click.echo(str(job.states + job.path if of_state else job.place))
