"""`moat kv error`: what went wrong on the nodes, kept in the tree until it is resolved."""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING, Any

import asyncclick as click

from moat_kv import config, errors
from moat_kv.path import P, Path
from moat_kv_cli import command, happening, output, placement, verbs

if TYPE_CHECKING:
    from moat_kv import Client
    from moat_kv.client.error_record import ErrorRecord

_COLUMNS = ["last", "first", "count", "subsystem", "path", "message", "nodes", "state"]

_subsystem = click.option(
    "-s", "--subsystem", metavar="NAME", help="Only of that part, such as run."
)


@click.group(
    cls=command.Group,
    example="moat kv error list\nmoat kv error show home.onewire.temp.28.0123456789AB",
)
def error() -> None:
    """Look at errors, acknowledge and resolve them."""


@error.command("list", example="moat kv error list\nmoat kv error list --all home.onewire")
@click.argument("under", type=verbs.WITH_ERROR, default=":")
@_subsystem
@click.option("--all", "every", is_flag=True, help="Resolved ones as well.")
@output.option
@command.pass_invocation
async def list_(
    invocation: command.Invocation,
    /,
    under: Path,
    subsystem: str | None,
    every: bool,
    out: output.Printer,
) -> None:
    """List open errors, the latest first; those of paths at or below UNDER.

    `-o value` prints the paths alone.
    """
    from moat_kv.client import error_record

    async with invocation.client() as client:
        found = await error_record.records(
            client,
            subsystem=subsystem,
            under=under,
            resolved=None if every else False,
            places=await config.load_places(client),
        )
    if found or not out.for_people:
        out.rows(_COLUMNS, [_row(each, out) for each in found], bare="path")
    else:
        out.note("no errors" if every else "no open errors")


@error.command(example="moat kv error show home.onewire.temp.28.0123456789AB")
@click.argument("path", type=verbs.WITH_ERROR)
@_subsystem
@output.option
@command.pass_invocation
async def show(
    invocation: command.Invocation, /, path: Path, subsystem: str | None, out: output.Printer
) -> None:
    """Show the error of a path in full, with the trace of each node."""
    async with invocation.client() as client:
        found = await _find(client, path, subsystem)
    if not out.for_people:
        out.value(_full(found))
        return
    facts = _full(found)
    nodes = facts.pop("nodes")
    out.facts({name: value for name, value in facts.items() if value is not None})
    for name, seen in nodes.items():
        when = output.local_time(seen["at"])
        often = "once" if seen["count"] == 1 else f"{seen['count']} times"
        out.note(f"\non {name}, {often}, last {when}: {seen['message']}")
        if seen.get("data") is not None:
            out.value({"data": seen["data"]})
        if seen.get("trace"):
            out.value(seen["trace"])


@error.command(example="moat kv error ack home.onewire.temp.28.0123456789AB 'new sensor ordered'")
@click.argument("path", type=verbs.WITH_ERROR)
@click.argument("comment", default="")
@_subsystem
@command.pass_invocation
async def ack(
    invocation: command.Invocation, /, path: Path, comment: str, subsystem: str | None
) -> None:
    """Write a comment on an error, which stays open; without one, that you have seen it."""
    from moat_kv.client import error_record

    text = comment or f"seen by {_user()}"
    async with invocation.client() as client:
        found = await _find(client, path, subsystem)
        places = await config.load_places(client)
        await error_record.annotate(client, found.subsystem, found.path, text, places=places)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        return f"user {os.getuid()}"


@error.command(example="moat kv error resolve home.onewire.temp.28.0123456789AB --comment replaced")
@click.argument("path", type=verbs.WITH_ERROR)
@click.option("--comment", metavar="TEXT", help="Why it is over.")
@_subsystem
@command.pass_invocation
async def resolve(
    invocation: command.Invocation, /, path: Path, comment: str | None, subsystem: str | None
) -> None:
    """Say that an error is over. A success of the same job does so by itself."""
    from moat_kv.client import error_record

    async with invocation.client() as client:
        found = await _find(client, path, subsystem)
        places = await config.load_places(client)
        if not await error_record.resolve(
            client, found.subsystem, found.path, comment=comment, places=places
        ):
            raise errors.NotFound("open error of", str(path), hint="it is resolved already")


@error.command(example="moat kv error watch\nmoat kv error watch -o jsonl")
@click.option("-f", "--fetch", is_flag=True, help="First those that are there now.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many lines.")
@output.option
@command.pass_invocation
async def watch(
    invocation: command.Invocation, /, fetch: bool, count: int | None, out: output.Printer
) -> None:
    """Print errors as they come, come again and are resolved, until interrupted."""
    from moat_kv.client import error_record

    shown, seen = 0, happening.Seen()
    async with invocation.staying_client() as client:
        base = (await config.load_places(client)).error
        async with client.watch(base, fetch=True, min_depth=1) as changes:
            async for event in changes:
                for change in seen.take(event):
                    if change.is_old and not fetch:
                        continue
                    try:
                        record = error_record.of_value(change.after)
                    except errors.BadValue:
                        continue  # deleted, or somebody's own entry
                    out.row(_COLUMNS, _row(record, out), bare="path")
                    shown += 1
                    if shown == count:
                        return


@error.command(example="moat kv error notify tell.me\nmoat kv error notify --off")
@click.argument("procedure", type=verbs.PROCEDURE, required=False)
@click.option("-g", "--group", metavar="GROUP", help="The group whose runners call it. [default]")
@click.option("--off", is_flag=True, help="Tell nobody any more.")
@output.option
@command.pass_invocation
async def notify(
    invocation: command.Invocation,
    /,
    procedure: Path | None,
    group: str | None,
    off: bool,
    out: output.Printer,
) -> None:
    """Have a procedure called for each new error, once, by one node; alone, say which it is.

    It is given `error`: `subsystem`, `path`, `message`, `count`, `first`, `last`, `nodes`, `trace`.
    """
    from moat_kv_runner import notices

    if off and (procedure is not None or group is not None):
        raise command.fail("--off stands alone")
    if group is not None and procedure is None:
        raise command.fail("-g goes with a procedure")
    default = P(invocation.config.runner.group)
    wanted_group = default if group is None else placement.read_group(group)
    async with invocation.client() as client:
        places = await config.load_places(client)
        if off:
            await client.delete(places.error)
        elif procedure is not None:
            wanted = notices.Setting(notify=procedure, group=wanted_group)
            await client.set(places.error, wanted.as_value())
            if "value" not in await client.get(places.proc + procedure):
                click.echo(f"moat: there is no procedure {procedure} yet", err=True)
            if group is not None and not await placement.members(client, wanted_group):
                click.echo(f"moat: no runner serves group {wanted_group} now", err=True)
        else:
            found = notices.parse((await client.get(places.error)).get("value"), default)
            if found is None:
                raise errors.NotFound("procedure", "for new errors", hint="nobody is told")
            out.facts({"notify": str(found.notify), "group": str(found.group)})


async def _find(client: Client, path: Path, subsystem: str | None) -> ErrorRecord:
    """The record of a path, or at a path. Raises NotFound, or UsageError if there are several."""
    from moat_kv.client import error_record

    places = await config.load_places(client)
    if path.startswith(places.error):
        result = await client.get(path)
        if "value" not in result:
            raise errors.NotFound("error at", str(path))
        return error_record.of_value(result["value"])
    found = [
        each
        for each in await error_record.records(
            client, subsystem=subsystem, under=path, resolved=None, places=places
        )
        if each.path == path
    ]
    if not found:
        raise errors.NotFound("error of", str(path), hint="`error list` shows what there is")
    if len(found) > 1:
        known = ", ".join(sorted(each.subsystem for each in found))
        raise command.fail(f"{path} has errors of {known}; say which with -s")
    return found[0]


def _row(record: ErrorRecord, out: output.Printer) -> dict[str, Any]:
    state = "open" if record.resolved is None else f"resolved by {record.resolved_by}"
    if record.comment and out.for_people:
        state += f": {record.comment}"
    return {
        "last": record.last,
        "first": record.first,
        "count": record.count,
        "subsystem": record.subsystem,
        "path": str(record.path),
        "message": record.message,
        "nodes": list(record.nodes),
        "state": state,
        "comment": record.comment,
    }


def _full(record: ErrorRecord) -> dict[str, Any]:
    return {**record.as_value(), "path": str(record.path)}
