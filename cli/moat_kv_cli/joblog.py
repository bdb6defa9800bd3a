"""`moat kv run at PATH log` and `runs`: what a job's runs have printed, and how they ended.

That is on the nodes that ran them; they are asked through the server, and whoever is not there
cannot be. Nothing is read from the tree but who serves the group.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

import anyio
import asyncclick as click

from moat_kv import Client, config, errors, visible
from moat_kv.client import claiming
from moat_kv_cli import command, one_job, output, placement
from moat_kv_runner.kept import asking, questions

#: How often runners are asked for more, in seconds, and how long they may take then.
FOLLOW_S = 0.5
FOLLOW_LIMIT_S = 2.0

_RUN_COLUMNS = [
    "started",
    "node",
    "run",
    "outcome",
    "stopped",
    "took",
    "result",
    "reason",
    "fence",
]
_LINE_COLUMNS = ["at", "node", "run", "stream", "level", "text"]

_node = click.option(
    "-n",
    "--node",
    "wanted",
    metavar="NODE",
    help="Only what ran on that node. [all that serve the group now]",
)


class _Asked:
    """Whom to ask about one job, and the answers so far."""

    def __init__(self, client: Client, job: one_job.Job, wanted: str | None) -> None:
        self.client = client
        self.job = job
        self.wanted = wanted if job.which.kind != "at" else job.which.node
        if wanted not in (None, self.wanted):
            raise command.fail(f"the job is for node {self.wanted} alone")
        #: The nodes that may know of it.
        self.nodes: list[str] = []

    async def look(self) -> None:
        """Who is there? Raises NotFound if nobody is who could know."""
        group = self.job.which.group
        members = await placement.members(self.client, group)
        kind = self.job.which.kind
        self.nodes = [name for name, each in members.items() if kind in each.roles]
        if self.wanted is not None:
            self.nodes = [name for name in self.nodes if name == self.wanted]
        if not self.nodes:
            name = f"{self.wanted} of group {group}" if self.wanted else f"for {self.job.which}"
            hint = f"what runs of {self.job.path} have left is on their nodes"
            raise errors.NotFound("runner", f"{name} now", hint=hint)

    async def desk(self) -> asking.Desk:
        which = self.job.which
        places = await config.load_places(self.client)
        return asking.Desk(
            self.client, places, group=which.group, kind=which.kind, path=self.job.path
        )

    def tell_missing(self, answers: Mapping[str, Any]) -> None:
        """Say who has not answered, or could not."""
        for name in self.nodes:
            if name not in answers:
                text = f"no answer from {name} within {asking.LIMIT_S:g} s"
                click.echo(f"moat: {text}; what ran there is not shown", err=True)
            elif "error" in answers[name]:
                click.echo(f"moat: {name}: {answers[name]['error']}", err=True)
        if self.nodes and not any("error" not in each for each in answers.values()):
            raise command.Refused("none of its nodes can say what it has left")


@click.command(
    cls=command.Command,
    example="moat kv run at a.question runs\nmoat kv run -n - at report runs -n pi3 -o json",
)
@_node
@click.option(
    "--count",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    metavar="N",
    help="No more than the last N; long only.",
)
@output.option
@command.pass_invocation
async def runs(
    invocation: command.Invocation, /, wanted: str | None, count: int, out: output.Printer
) -> None:
    """List a job's last runs, on all nodes that are there, the latest first."""
    async with invocation.client() as client:
        asked = _Asked(client, await one_job.Job.of(invocation, client), wanted)
        await asked.job.entry()
        await asked.look()
        async with await asked.desk() as desk:
            rows = await _runs(asked, desk)
    rows = rows[:count]
    if not rows and out.for_people:
        out.note("no runs")
        return
    out.rows(_RUN_COLUMNS, [_run_for_people(row) for row in rows] if out.for_people else rows)


async def _runs(asked: _Asked, desk: asking.Desk) -> list[dict[str, Any]]:
    answers = await desk.ask(questions.RUNS, asked.nodes, node=asked.wanted)
    asked.tell_missing(answers)
    rows = [
        _run_row(name, each)
        for name, answer in answers.items()
        for each in answer.get("runs", ())
        if isinstance(each, Mapping)
    ]
    return sorted(rows, key=lambda row: row.get("started") or 0, reverse=True)


def _run_row(node: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    row = {"outcome": "running", **facts, "node": node}
    started, stopped = row.get("started"), row.get("stopped")
    if isinstance(started, float) and isinstance(stopped, float):
        row["took_s"] = max(0.0, round(stopped - started, 3))
    return row


def _run_for_people(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = dict(row)
    shown["reason"] = row.get("error") or row.get("reason")
    if "result_bytes" in row:
        shown["result"] = f"({row['result_bytes']} bytes; `state -r` has the last one)"
    if "took_s" in row:
        shown["took"] = f"{row['took_s']:.3f} s" if row["took_s"] < 10 else f"{row['took_s']:.0f} s"
    return shown


@click.command(
    cls=command.Command,
    example="moat kv run at a.question log\nmoat kv run at a.question log -f --lines 10\n"
    "moat kv run at a.question log --run -1",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@click.option(
    "--run", "number", type=int, metavar="K", help="Only run K; -1 is the last; see `runs`."
)
@_node
@click.option(
    "--lines",
    type=click.IntRange(0, questions.MOST_LINES),
    default=100,
    show_default=True,
    metavar="N",
    help="No more than the last N lines.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many lines.")
@output.option
@command.pass_invocation
async def log(
    invocation: command.Invocation,
    /,
    follow: bool,
    number: int | None,
    wanted: str | None,
    lines: int,
    count: int | None,
    out: output.Printer,
) -> None:
    """Print what a job has printed and logged, wherever it ran, the oldest line first."""
    if number == 0:
        raise command.fail("runs are counted from 1, or from the last, which is -1")
    opened = invocation.staying_client() if follow else invocation.client()
    async with opened as client:
        asked = _Asked(client, await one_job.Job.of(invocation, client), wanted)
        await asked.job.entry()
        await asked.look()
        async with await asked.desk() as desk:
            if number is not None:
                asked.wanted, number = await _chosen(asked, desk, number)
                asked.nodes = [asked.wanted]
            began = time.time()
            answers = await desk.ask(
                questions.LINES, asked.nodes, node=asked.wanted, run=number, count=lines
            )
            asked.tell_missing(answers)
            shown = _Shown(out, count, with_node=len(asked.nodes) > 1)
            rows = _lines(answers)
            if not rows and lines and not follow and out.for_people:
                out.note("no lines")
            # `--lines` is for all nodes together.
            if not shown.lines(rows[len(rows) - min(lines, len(rows)) :]) and follow:
                await _follow(asked, desk, shown, _cursors(answers), number, began)


async def _chosen(asked: _Asked, desk: asking.Desk, number: int) -> tuple[str, int]:
    """The run that is meant, and where it was. Raises NotFound, UsageError."""
    rows = await _runs(asked, desk)
    if number < 0:
        found = rows[-number - 1 : -number]
    else:
        found = [row for row in rows if row.get("run") == number]
    if not found:
        raise errors.NotFound("run", str(number), hint="`runs` shows which there are")
    if len(found) > 1:
        nodes = ", ".join(sorted(str(row["node"]) for row in found))
        raise command.fail(f"there is a run {number} on each of {nodes}; say which with -n")
    return str(found[0]["node"]), int(found[0]["run"])


def _lines(answers: asking.Answers) -> list[dict[str, Any]]:
    rows = [
        {**line, "node": name}
        for name, answer in answers.items()
        for line in answer.get("lines", ())
        if isinstance(line, Mapping) and isinstance(line.get("at"), int | float)
    ]
    return sorted(rows, key=lambda row: float(row["at"]))


def _cursors(answers: asking.Answers) -> dict[str, Any]:
    return {name: each["cursor"] for name, each in answers.items() if "cursor" in each}


async def _follow(
    asked: _Asked,
    desk: asking.Desk,
    shown: _Shown,
    cursors: dict[str, Any],
    number: int | None,
    began: float,
) -> None:
    while True:
        facts: dict[str, Any] = {"node": asked.wanted, "run": number, "since": began}
        try:
            answers = await desk.ask(
                questions.LINES, asked.nodes, limit_s=FOLLOW_LIMIT_S, after=cursors, **facts
            )
            await _see_who_is_there(asked)
        except claiming.PASSING:
            await claiming.line_change(asked.client)
            continue
        # Without a wish for one node, another one may have taken the job over.
        shown.with_node = shown.with_node or len(asked.nodes) > 1
        cursors.update(_cursors(answers))
        if any(each.get("missed") for each in answers.values()):
            click.echo("moat: lines were forgotten before they could be shown", err=True)
        if shown.lines(_lines(answers)):
            return
        if not any(each.get("more") for each in answers.values()):
            await anyio.sleep(FOLLOW_S)


async def _see_who_is_there(asked: _Asked) -> None:
    before = asked.nodes
    try:
        await asked.look()
    except errors.NotFound:
        asked.nodes = []
    for name in sorted({*before} ^ {*asked.nodes}):
        done = "has come" if name in asked.nodes else "is gone"
        click.echo(f"moat: {name} {done}", err=True)


class _Shown:
    """Prints lines, up to so many."""

    def __init__(self, out: output.Printer, count: int | None, *, with_node: bool) -> None:
        self.with_node = with_node
        self._out = out
        self._left = math.inf if count is None else count

    def lines(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Print these; whether it is enough."""
        today = date.today() if self._out.format == output.TABLE else None
        for row in rows:
            if self._left <= 0:
                break
            self._left -= 1
            if self._out.for_people:
                self._out.line(_text(row, today, with_node=self.with_node))
            else:
                self._out.row(_LINE_COLUMNS, row, bare="text")
        self._out.flush()
        return self._left <= 0


def _text(row: Mapping[str, Any], today: date | None, *, with_node: bool) -> str:
    """A line for people; what a terminal would obey is spelled out."""
    level, stream = row.get("level"), str(row.get("stream"))
    word = logging.getLevelName(level).lower() if isinstance(level, int) else stream
    parts = [_time(float(row["at"]), today), f"#{row.get('run')}", f"{word:<7}"]
    if with_node:
        parts.insert(1, str(row["node"]))
    first, *others = visible.made(str(row.get("text"))).split("\n")
    return "\n".join([f"{'  '.join(parts)}  {first}", *(f"    {each}" for each in others)])


def _time(when: float, today: date | None) -> str:
    """Local time to the millisecond; on `today` without the date."""
    try:
        local = datetime.fromtimestamp(when)
    except (OverflowError, ValueError, OSError):
        return repr(when)
    form = "%H:%M:%S" if local.date() == today else "%Y-%m-%d %H:%M:%S"
    return f"{local:{form}}.{local.microsecond // 1000:03d}"
