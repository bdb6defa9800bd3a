"""`moat kv model`: state models that processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncclick as click

import moat_kv
from moat_kv import Client, errors
from moat_kv.path import Path
from moat_kv_cli import command, output, values, verbs

if TYPE_CHECKING:
    from moat_kv.state.inspecting import Stored

_COLUMNS = ["model", "version", "at", "state"]


async def _place(invocation: command.Invocation, client: Client) -> Path:
    from moat_kv.state import inspecting

    return await inspecting.place_of(client)


_MODEL = verbs.PathType(base=_place)


@click.group(
    cls=command.Group,
    example="moat kv model list\nmoat kv model get Thermostat.hall\n"
    "moat kv model set Thermostat.hall -e target 21.5\nmoat kv model watch Thermostat",
)
def model() -> None:
    """Look at shared state models, and commit changes to them.

    A model is a class's name; of several the id follows: Thermostat.hall.
    """


@model.command("list", example="moat kv model list\nmoat kv model list Thermostat -o json")
@click.argument("under", type=_MODEL, default=":")
@output.option
@command.pass_invocation
async def list_(invocation: command.Invocation, /, under: Path, out: output.Printer) -> None:
    """List the models, all or those of one class. `-o value` prints the names alone."""
    from moat_kv.state import inspecting

    async with invocation.client() as client:
        found = await inspecting.find_all(client, under)
    if found or not out.for_people:
        out.rows(_COLUMNS, [_row(each) for each in found], bare="model")
    else:
        out.note("no models")


@model.command(example="moat kv model get User\nmoat kv model get Thermostat.hall -l -o json")
@click.argument("name", type=_MODEL, metavar="MODEL")
@click.option("-l", "--long", is_flag=True, help="Revision, time and commit as well.")
@output.option
@command.pass_invocation
async def get(
    invocation: command.Invocation, /, name: Path, long: bool, out: output.Printer
) -> None:
    """Print a model's state."""
    from moat_kv.state import inspecting

    async with invocation.client() as client:
        found = await inspecting.find(client, name)
    if long:
        out.facts(_row(found))
    else:
        out.value(found.state)


@model.command(
    "set",
    example="moat kv model set Thermostat.hall -e target 21.5\n"
    "moat kv model set User -v name cS --wait 60",
)
@click.argument("name", type=_MODEL, metavar="MODEL")
@values.options
@click.option(
    "--wait",
    "wait_s",
    type=command.FiniteRange(0),
    default=10.0,
    metavar="SECONDS",
    help="How long to wait for the model's lock. [10]",
)
@output.option
@command.pass_invocation
async def set_(
    invocation: command.Invocation,
    /,
    name: Path,
    wait_s: float,
    out: output.Printer,
    **given: Any,
) -> None:
    """Commit a change: some attributes, or with -y the whole state.

    Under the model's lock, and checked against its schema; the validators of its class are not
    known here, so each process that has the model checks once more, and stays with the old state
    if it refuses. Exit code 4 if the lock is not to be had, or others were quicker.
    """
    from moat_kv.state import inspecting

    change = values.read(**given)
    if not change:
        raise command.fail("no value; give one with -v, -e, -p or -y")
    async with invocation.client() as client:
        written = await inspecting.change(client, name, change.apply, wait_s=wait_s)
    out.done({"model": str(name), "rev": written.rev, "at": written.at})


@model.command(example="moat kv model watch Thermostat\nmoat kv model watch User -f -o jsonl")
@click.argument("under", type=_MODEL, default=":", metavar="[MODEL]")
@click.option("-f", "--fetch", is_flag=True, help="First what is there now.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many lines.")
@output.option
@command.pass_invocation
async def watch(
    invocation: command.Invocation,
    /,
    under: Path,
    fetch: bool,
    count: int | None,
    out: output.Printer,
) -> None:
    """Print states as they are committed, of one model, of one class, or of all."""
    from moat_kv.state import inspecting

    seen = 0
    async with invocation.staying_client() as client:
        place = await inspecting.place_of(client)
        async with client.watch(place + under, fetch=fetch) as changes:
            async for event in changes:
                if isinstance(event, moat_kv.Reset):
                    click.echo(f"moat: changes may be missing here: {event.reason}", err=True)
                row = _row_of(event, place)
                if row is not None:
                    out.row(["model", "state"], row, bare="state")
                    seen += 1
                    if seen == count:
                        return


@model.command(example="moat kv model history User --limit 5")
@click.argument("name", type=_MODEL, metavar="MODEL")
@click.option("--limit", type=click.IntRange(1), default=20, metavar="N", help="At most. [20]")
@output.option
@command.pass_invocation
async def history(
    invocation: command.Invocation, /, name: Path, limit: int, out: output.Printer
) -> None:
    """Print the kept states of a model, the newest first."""
    from moat_kv.state import inspecting

    async with invocation.client() as client:
        place = await inspecting.place_of(client)
        kept = await client.history(place + name, limit=limit)
    if not kept:
        raise errors.NotFound("history of", str(name))
    rows = [_row(inspecting.stored_of(name, each)) for each in kept]
    out.rows(["rev", "at", "state", "by"], rows, bare="state")


@model.command(example="moat kv model schema Thermostat")
@click.argument("name", type=_MODEL, metavar="MODEL")
@output.option
@command.pass_invocation
async def schema(invocation: command.Invocation, /, name: Path, out: output.Printer) -> None:
    """Print what a model's class declares, as JSON Schema, with its version."""
    from moat_kv.state import inspecting

    async with invocation.client() as client:
        found = await inspecting.schema_of(client, name)
    out.value(found)


def _row(each: Stored) -> dict[str, Any]:
    row: dict[str, Any] = {"model": str(each.name)}
    row |= {"deleted": True, "state": "(deleted)"} if each.state is None else {"state": each.state}
    return row | {"version": each.version, "rev": each.rev, "at": each.at, "by": each.by}


def _row_of(event: object, place: Path) -> dict[str, Any] | None:
    """A watch's event as a row; None if it is not a model's."""
    from moat_kv.state import inspecting

    if not isinstance(event, moat_kv.WatchEvent):
        return None
    name = event.path[len(place) :]
    if not name or name[-1] is None:
        return None
    try:
        return _row(inspecting.stored_of(name, event))
    except errors.BadValue:
        return None
