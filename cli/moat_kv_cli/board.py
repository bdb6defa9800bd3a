"""`moat kv run board`: a group's nodes and jobs in a table that is kept current.

On a terminal it is drawn anew when something has changed, until interrupted; elsewhere, and with
`--once`, it is printed once. Reads what `run info` reads, and writes nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

import anyio
import asyncclick as click

from moat_kv import Client, config, errors
from moat_kv.path import Path
from moat_kv_cli import command, output, placement, plain, progress
from moat_kv_runner import group_settings, node_facts

if TYPE_CHECKING:
    from rich import console, table

#: It is drawn anew not more often than that, and not less often, in seconds.
DRAW_S = 1.0
LOOK_S = 10.0

_NODE_COLUMNS = ["node", "roles", "jobs", "load", "weight", "tags", "state"]
_JOB_COLUMNS = ["path", "for", "state", "node", "since", "due", "last"]
#: Lines of a drawing that are no rows.
_FRAME_LINES = 9
_LAST_LIMIT = 120
_PARTED = "this server is cut off: what others do is shown as it was; `why` tells what holds here"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A group at one time."""

    group: Path
    nodes: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    parted: bool = False
    """The server has been cut off from the others for longer than claims hold."""

    def as_value(self) -> dict[str, Any]:
        found = {"group": str(self.group), "nodes": self.nodes, "jobs": self.jobs}
        return found | ({"parted": True} if self.parted else {})


@click.command(
    cls=command.Command,
    example="moat kv run board\nmoat kv run -g heating board --once\nmoat kv run board -o json",
)
@click.option("--once", is_flag=True, help="Print it once, also on a terminal.")
@placement.options
@output.option
@command.pass_invocation
async def board(invocation: command.Invocation, /, once: bool, out: output.Printer) -> None:
    """Show a group's nodes and jobs, and keep that current, until interrupted.

    Without -n: all jobs of the group, whatever nodes they are for. Not on a terminal, with -o, and
    with --once, it is printed once.
    """
    which = placement.of(invocation)
    wanted = which if invocation.node is not None else None
    is_live = out.format == output.TABLE and not (once or out.asked)
    async with invocation.client() as client:
        if is_live:
            from rich import console

            await live(client, which.group, wanted, console.Console(highlight=False))
            return
        picture = await look(client, which.group, wanted)
    if not out.for_people:
        out.value(picture.as_value())
        return
    out.rows(_NODE_COLUMNS, _nodes_for_people(picture))
    out.note("")
    out.rows(_JOB_COLUMNS, [_for_people(row) for row in picture.jobs])
    if picture.parted:
        out.note(_PARTED)


# Looking ----------------------------------------------------------------------------------------


async def look(client: Client, group: Path, which: placement.Placement | None) -> Picture:
    """The group now; `which` None: all of its jobs."""
    places = await config.load_places(client)
    jobs = []
    for each in [which] if which is not None else await _all_kinds(client, places, group):
        whose = each.node if each.kind == "at" else each.kind
        for row in await progress.job_rows(client, each, Path()):
            jobs.append({**row, "for": whose, "since": _since(row)})
    any_node = placement.Placement(node=None, group=group)
    settings = await client.get(placement.places_of(any_node, places)[0])
    drained = group_settings.parse(settings.get("value")).drained
    running = Counter(row.get("node") for row in jobs if row["state"] == "running")
    members = await placement.members(client, group)
    nodes = [
        {
            "node": name,
            "roles": list(each.roles),
            "jobs": running[name],
            **node_facts.parse(each.info).as_info(),
            "state": "drained" if name in drained else "here",
        }
        for name, each in members.items()
    ]
    gone = {str(name) for name in running if name is not None} - members.keys()
    nodes += [{"node": name, "jobs": running[name], "state": "gone"} for name in sorted(gone)]
    jobs.sort(key=lambda row: (row["path"], row["for"], str(row.get("node"))))
    return Picture(group=group, nodes=nodes, jobs=jobs, parted=members.parted)


async def _all_kinds(
    client: Client, places: config.Places, group: Path
) -> list[placement.Placement]:
    names = [str(each.name) for each in await client.list(places.run / "at")]
    nodes = [None, *sorted(names), placement.EVERY_NODE]
    return [placement.Placement(node=node, group=group) for node in nodes]


def _since(row: dict[str, Any]) -> float | None:
    """Since when a job is in its state, as far as that is known."""
    since = row.get("started") if row["state"] == "running" else row.get("stopped")
    return since if isinstance(since, int | float) else None


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    shown = progress.for_people(row)
    if shown.get("reason") is None and row.get("result") is not None:
        shown["last"] = plain.inline(row["result"])
    else:
        shown["last"] = shown.get("reason")
    return shown


def _nodes_for_people(picture: Picture) -> list[dict[str, Any]]:
    return [{**row, "tags": row.get("tags") or None} for row in picture.nodes]


# Live -------------------------------------------------------------------------------------------


class _News:
    """Whether anything has changed since the last drawing, and whether there is a line."""

    def __init__(self) -> None:
        self.changed = anyio.Event()
        self.away_since: float | None = None

    def tell(self) -> None:
        self.changed.set()

    def line_changed(self, is_up: bool) -> None:
        self.away_since = None if is_up else time.time()
        self.tell()


async def live(
    client: Client,
    group: Path,
    which: placement.Placement | None,
    screen: console.Console,
    *,
    drawings: int | None = None,
) -> None:
    """Draw the group whenever it has changed; `drawings`: end after so many."""
    from rich import live as rich_live

    news = _News()
    picture = await look(client, group, which)
    with rich_live.Live(
        console=screen, auto_refresh=False, screen=screen.is_terminal, transient=True
    ) as shown:
        async with anyio.create_task_group() as tasks:
            remove = client.add_connection_listener(news.line_changed)
            try:
                places = await config.load_places(client)
                for base in (places.run, places.state, places.claim):
                    tasks.start_soon(_watch, client, base, news)
                tasks.start_soon(_watch_members, client, places.group + group, news)
                while drawings is None or drawings > 0:
                    news.changed = anyio.Event()
                    with contextlib.suppress(errors.MoatKvError):  # then the last one stays
                        if client.connected:
                            picture = await look(client, group, which)
                    height = screen.height if screen.is_terminal else None
                    shown.update(drawn(picture, news.away_since, height), refresh=True)
                    drawings = None if drawings is None else drawings - 1
                    await anyio.sleep(DRAW_S)
                    with anyio.move_on_after(LOOK_S):
                        await news.changed.wait()
            finally:
                remove()
            tasks.cancel_scope.cancel()


async def _watch(client: Client, base: Path, news: _News) -> None:
    async with client.watch(base) as events:
        async for _ in events:
            news.tell()


async def _watch_members(client: Client, group: Path, news: _News) -> None:
    async with client.watch_group(group) as changes:
        async for _ in changes:
            news.tell()


def drawn(picture: Picture, away_since: float | None, height: int | None) -> console.Group:
    """Both tables, no more rows than the terminal has."""
    from rich import console, text

    jobs, left_out = picture.jobs, 0
    if height is not None:
        most = max(1, height - len(picture.nodes) - _FRAME_LINES)
        jobs, left_out = jobs[:most], max(0, len(jobs) - most)
    head = f"group {picture.group}, {output.local_time(time.time())}"
    parts: list[Any] = [
        text.Text(head, style="bold"),
        _table(_NODE_COLUMNS, _nodes_for_people(picture)),
        text.Text(""),
        _table(_JOB_COLUMNS, [_for_people(row) for row in jobs]),
    ]
    if left_out:
        parts.append(text.Text(f"and {left_out} more; --once shows all", style="dim"))
    if picture.parted:
        parts.append(text.Text(_PARTED, style="bold red"))
    if away_since is not None:
        since = output.local_time(away_since, date.today())
        parts.append(text.Text(f"no line to the server since {since}", style="bold red"))
    return console.Group(*parts)


_STYLES = {
    "running": "green",
    "failed": "red",
    "parked": "bold red",
    "cut off": "red",
    "gone": "red",
    "drained": "yellow",
    "waiting": "yellow",
}


def _table(columns: Sequence[str], rows: Sequence[output.Row]) -> table.Table:
    from rich import box, table, text

    grid = table.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in columns:
        grid.add_column(name, overflow="ellipsis", no_wrap=True)
    today = date.today()
    for row in rows:
        cells = [output.shown(row, name, today=today)[:_LAST_LIMIT] for name in columns]
        style = _STYLES.get(str(row.get("state")), "")
        grid.add_row(*map(text.Text, cells), style=style)
    return grid


__all__ = ["Picture", "board", "drawn", "live", "look"]
