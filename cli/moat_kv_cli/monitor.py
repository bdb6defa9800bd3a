"""`moat kv run monitor`: what happens to a group's jobs and nodes, as it happens."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import anyio
import asyncclick as click

from moat_kv import Client, config
from moat_kv.client import claiming, results
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path
from moat_kv_cli import command, happening, output, placement, progress
from moat_kv_runner import job as spec


@click.command(
    cls=command.Command,
    example="moat kv run monitor\nmoat kv run -n pi3 monitor -f -o table\n"
    "moat kv run monitor | jq 'select(.event == \"failed\")'",
)
@click.option("-f", "--fetch", is_flag=True, help="First what is there now.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many events.")
@placement.options
@output.option
@command.pass_invocation
async def monitor(
    invocation: command.Invocation, /, fetch: bool, count: int | None, out: output.Printer
) -> None:
    """Print what happens to a group's jobs and nodes as it happens, until interrupted.

    Without -n: to all jobs of the group, whatever nodes they are for. A line of JSON for each, if
    not on a terminal. Events of jobs are running, done, failed, parked, stopped, waiting,
    forgotten, claimed, released and lost, those of nodes come and gone. It goes on when the server
    is back, and tells what is another then.
    """
    which = placement.of(invocation)
    if out.format == output.PLAIN:
        out = output.Printer("jsonl")
    async with invocation.staying_client() as client:
        places = await config.load_places(client)
        async with anyio.create_task_group() as tasks:
            shown = _Shown(out, tasks.cancel_scope, count, fetch=fetch)
            wanted = which if invocation.node is not None else None
            follow = _Follow(client, places, which.group, wanted, shown)
            tasks.start_soon(follow.states)
            tasks.start_soon(follow.claims)
            tasks.start_soon(follow.members)


class _Shown:
    """Prints events, up to so many."""

    def __init__(
        self, out: output.Printer, scope: anyio.CancelScope, count: int | None, *, fetch: bool
    ) -> None:
        self._out = out
        self._scope = scope
        self._left = math.inf if count is None else count
        self._fetch = fetch

    def rows(self, rows: list[dict[str, Any]], *, is_old: bool) -> None:
        """Print these; `is_old`: they were so when it began."""
        for row in rows if self._fetch or not is_old else ():
            if self._left <= 0:
                return
            shown = progress.for_people(row) if self._out.for_people else row
            bare = "path" if "path" in row else "node"
            self._out.row(happening.COLUMNS, shown, bare=bare)
            self._left -= 1
            if self._left <= 0:
                self._scope.cancel()


class _Follow:
    def __init__(
        self,
        client: Client,
        places: config.Places,
        group: Path,
        which: placement.Placement | None,
        shown: _Shown,
    ) -> None:
        self._client = client
        self._places = places
        self._group = group
        self._which = which
        self._shown = shown

    async def states(self) -> None:
        base, seen = self._places.state, happening.Seen()
        async with self._client.watch(base, fetch=True) as events:
            async for event in events:
                for change in seen.take(event):
                    place = self._place(change.path[len(base) :])
                    if place is not None:
                        rows = happening.state_rows(place, change)
                        self._shown.rows(rows, is_old=change.is_old)

    async def claims(self) -> None:
        base, seen = self._places.claim, happening.Seen()
        async with self._client.watch(base, fetch=True) as events:
            async for event in events:
                for change in seen.take(event):
                    below = change.path[len(base) :]
                    place = self._place(below)
                    if place is not None:
                        was_running = await self._is_running(below, change)
                        rows = happening.claim_rows(place, change, was_running=was_running)
                        self._shown.rows(rows, is_old=change.is_old)

    async def _is_running(self, below: Path, change: happening.Change) -> bool:
        """Whether a job's state says that it runs though its claim is gone.

        What was written before the claim went is seen by then.
        """
        if change.after is not NotGiven:
            return False
        path = self._places.state + below
        result = await claiming.patiently(self._client, lambda: self._client.get(path))
        state = spec.parse_state(result.get("value"))
        return state.running and progress.event_word(state) == "running"

    async def members(self) -> None:
        known: Mapping[str, results.MemberInfo] = {}
        is_old = True
        async with self._client.watch_group(self._places.group + self._group) as changes:
            async for members in changes:
                if members is None:
                    continue  # the line is broken; who is there is told when it is back
                rows = happening.member_rows(known, members, time.time())
                self._shown.rows(rows, is_old=is_old)
                known, is_old = dict(members), False

    def _place(self, below: Path) -> happening.Place | None:
        return happening.place_of(below, self._group, self._which)
