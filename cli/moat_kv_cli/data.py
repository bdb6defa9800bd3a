"""`moat kv data PATH [verb]`: entries, one by one and as subtrees."""

from __future__ import annotations

from typing import Any

import asyncclick as click

import moat_kv
from moat_kv import errors
from moat_kv.path import Path
from moat_kv_cli import command, dump, edit, entries, output, values, verbs


@click.group(
    cls=verbs.PathGroup,
    example="moat kv data one.two.three\nmoat kv data : list\nmoat kv data a set -e temp.max 30",
)
def data() -> None:
    """Look at and change entries. PATH alone prints the value; the root is `:`."""


@data.command(example="moat kv data one.two.three\nmoat kv data one.two.three get -o json")
@click.option("-l", "--long", is_flag=True, help="Revision, time and record as well.")
@output.option
@command.pass_invocation
async def get(invocation: command.Invocation, /, long: bool, out: output.Printer) -> None:
    """Print the value of one entry."""
    async with invocation.client() as client:
        result = await entries.require(client, invocation.here)
        if result.pending and not long:
            command.tell_kept(client, f"{invocation.here} is ")
    if long:
        out.facts(entries.row(result, invocation.here))
    else:
        out.value(result["value"])


@data.command("list", example="moat kv data : list\nmoat kv data one list -r -o jsonl")
@click.option("-r", "--recursive", is_flag=True, help="All entries below, not only the next.")
@output.option
@command.pass_invocation
async def list_(invocation: command.Invocation, /, recursive: bool, out: output.Printer) -> None:
    """List what is below a path. `-o value` prints the paths alone.

    An entry without anything below it has an empty list; exit code 3 if there is no entry either.
    """
    here = invocation.here
    async with invocation.client() as client:
        found = client.get_tree(here, min_depth=1, max_depth=-1 if recursive else 1)
        rows = {here + each.path: entries.row(each, here + each.path) async for each in found}
        if recursive:
            columns = ["path", "value"]
        else:
            columns = ["path", "value", "children"]
            for child in await client.list(here):
                path = here / child.name
                rows.setdefault(path, {"path": str(path)})["children"] = child.children
        if not rows:
            await entries.require_any(client, here)
    out.rows(columns, [rows[path] for path in sorted(rows)])


@data.command(
    "set",
    example="moat kv data one.two.three set -e : 123\n"
    "moat kv data room set -v name kitchen -e temp.max 24.5 -e note -\n"
    "moat kv data room set -y < room.yaml",
)
@values.options
@click.option("--expect", type=int, metavar="REV", help="Only if that is its revision; 0: is new.")
@click.option("--idem", is_flag=True, help="Write nothing if the value is the same.")
@click.option("--ttl", "ttl_s", type=float, metavar="SECONDS", help="It ends by itself then.")
@output.option
@command.pass_invocation
async def set_(
    invocation: command.Invocation,
    /,
    expect: int | None,
    idem: bool,
    ttl_s: float | None,
    out: output.Printer,
    **given: Any,
) -> None:
    """Set a value, or some attributes of a mapping. Prints something only with -o."""
    change = values.read(**given)
    if not change:
        raise command.fail("no value; give one with -v, -e, -p or -y")
    path = invocation.here
    async with invocation.client() as client:
        if change.needs_old:
            result = await entries.change(
                client, path, change.apply, expect=expect, idem=idem, ttl_s=ttl_s
            )
        else:
            result = await client.set(path, change.apply(), expect=expect, idem=idem, ttl_s=ttl_s)
    out.done({"path": str(path), **entries.written(result)})


@data.command(example="moat kv data one.two.three delete\nmoat kv data one delete -r")
@click.option("-r", "--recursive", is_flag=True, help="Everything below it, too.")
@click.option("--expect", type=int, metavar="REV", help="Only if that is its revision.")
@click.option("--force", is_flag=True, help="With -r: even the whole tree.")
@output.option
@command.pass_invocation
async def delete(
    invocation: command.Invocation,
    /,
    recursive: bool,
    expect: int | None,
    force: bool,
    out: output.Printer,
) -> None:
    """Delete an entry; what is below it stays, unless -r is given."""
    path = invocation.here
    if recursive and expect is not None:
        raise command.fail("--expect is for one entry, -r for many")
    if recursive and not path and not force:
        raise command.fail("that is the whole tree, with all code and jobs; --force deletes it")
    async with invocation.client() as client:
        if recursive:
            count = await client.delete_tree(path)
            if not count:
                raise entries.nothing_there(path)
            out.note(f"{output.counted(count, 'entry', 'entries')} deleted")
            out.done({"path": str(path), "count": count})
            return
        done = await entries.delete(client, path, expect=expect)
        if done is None:
            raise await entries.not_found(client, path)
    out.done({"path": str(path), **done})


@data.command(
    example="moat kv data one watch --max-depth 1\nmoat kv data : watch --match 'a.+.#' -o jsonl"
)
@click.option("-f", "--fetch", is_flag=True, help="First what is there now.")
@click.option(
    "--match",
    "pattern",
    type=verbs.PATH,
    metavar="PATTERN",
    help="Only paths like this below PATH: + is any one element, # any number of them.",
)
@click.option("--min-depth", type=click.IntRange(0), default=0, metavar="N")
@click.option("--max-depth", type=click.IntRange(-1), default=-1, metavar="N", help="-1: any.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many lines.")
@output.option
@command.pass_invocation
async def watch(
    invocation: command.Invocation,
    /,
    fetch: bool,
    pattern: Path | None,
    min_depth: int,
    max_depth: int,
    count: int | None,
    out: output.Printer,
) -> None:
    """Print changes as they come, of an entry and all below it, until interrupted.

    `-o value` prints the values alone, an empty line for a deletion.
    """
    path = invocation.here
    if pattern is not None:
        if any(each in ("+", "#") for each in path):
            raise command.fail("+ and # belong into the --match pattern, not into PATH")
        path = path + pattern
    elif "+" in path or "#" in path:
        click.echo("moat: + and # in PATH are plain texts; a pattern is for --match", err=True)
    async with (
        invocation.staying_client() as client,
        client.watch(
            path,
            fetch=fetch,
            min_depth=min_depth,
            max_depth=max_depth,
            match=pattern is not None,
        ) as changes,
    ):
        seen = 0
        async for event in changes:
            if isinstance(event, moat_kv.Reset):
                click.echo(f"moat: changes may be missing here: {event.reason}", err=True)
            if not isinstance(event, moat_kv.WatchEvent):
                continue
            out.row(["path", "value"], entries.row(event, event.path), bare="value")
            seen += 1
            if seen == count:
                return


@data.command(example="moat kv data one.two.three history --limit 5")
@click.option("--limit", type=click.IntRange(1), default=20, metavar="N", help="At most. [20]")
@output.option
@command.pass_invocation
async def history(invocation: command.Invocation, /, limit: int, out: output.Printer) -> None:
    """Print the kept versions of one entry, the newest first."""
    path = invocation.here
    async with invocation.client() as client:
        versions = await client.history(path, limit=limit)
    if not versions:
        raise errors.NotFound("history of", str(path))
    out.rows(["rev", "at", "value", "id"], [entries.row(each, path) for each in versions])


for _command in (edit.edit, dump.update, dump.dump, dump.load):
    data.add_command(_command)
