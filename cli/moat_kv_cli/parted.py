"""`moat kv run at PATH parts` and `let-go`: jobs for any node, and a network that was parted."""

from __future__ import annotations

import contextlib
from typing import Any

import asyncclick as click

from moat_kv import errors
from moat_kv_cli import command, one_job, output
from moat_kv_runner import claims as made_claims

_COLUMNS = ["node", "started", "stopped", "result", "backoff", "reason", "settled"]


def _check_any(job: one_job.Job) -> None:
    if job.which.kind != "any":
        raise command.fail("only jobs for any node can be elsewhere; leave out -n")


@click.command(cls=command.Command, example="moat kv run at heating parts -o json")
@output.option
@command.pass_invocation
async def parts(invocation: command.Invocation, /, out: output.Printer) -> None:
    """Print what became of a job where it ran without a claim, while the network was parted."""
    async with invocation.client() as client:
        job = await one_job.Job.of(invocation, client)
        _check_any(job)
        await job.entry()
        found = {name: (await client.get(path)).get("value") for name, path in await job.parts()}
    rows: list[dict[str, Any]] = [
        {**value, "node": name} for name, value in found.items() if isinstance(value, dict)
    ]
    out.rows(_COLUMNS, rows)


@click.command("let-go", cls=command.Command, example="moat kv run at heating let-go")
@command.pass_invocation
async def let_go(invocation: command.Invocation, /) -> None:
    """Say that the runner to which a job sticks is dead, so that others may have the job.

    If it is not, both run it until it is back in the network.
    """
    async with invocation.client() as client:
        job = await one_job.Job.of(invocation, client)
        _check_any(job)
        await job.entry()
        claim = (await client.get(job.claims + job.path)).get("value")
        holder = made_claims.holder_of(claim)
        if holder is not None:
            raise command.Refused(f"job {job.path}: runner {holder} has it, and is not dead")
        where = job.states + job.path
        while True:
            found = await client.get(where)
            state = found.get("value")
            if not isinstance(state, dict) or "sticks_to" not in state:
                raise errors.NotFound("runner that has kept job", str(job.path))
            freed = {name: each for name, each in state.items() if name != "sticks_to"}
            with contextlib.suppress(errors.Conflict):
                await client.set(where, freed, expect=found.rev)
                break
    click.echo(f"job {job.path} is left to others than runner {state['sticks_to']}", err=True)
