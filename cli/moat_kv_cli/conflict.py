"""`moat kv conflict`: writes that a server kept while it was cut off, and that lost afterwards."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import asyncclick as click

from moat_kv.path import Path
from moat_kv_cli import command, output, verbs

if TYPE_CHECKING:
    from moat_kv.client.lost import LostWrite

_COLUMNS = ["at", "path", "node", "value", "winner", "id"]
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_UNIT_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}


@click.group(
    cls=command.Group,
    example="moat kv conflict list\nmoat kv conflict show n1:1f6e0c2a:17\n"
    "moat kv conflict restore n1:1f6e0c2a:17\nmoat kv conflict clear --older 30d",
)
def conflict() -> None:
    """Look at writes that lost against another one, put them back, forget them."""


@conflict.command("list", example="moat kv conflict list\nmoat kv conflict list home.light -o json")
@click.argument("under", type=verbs.PATH, default=":")
@output.option
@command.pass_invocation
async def list_(invocation: command.Invocation, /, under: Path, out: output.Printer) -> None:
    """List the writes that lost, the latest first; those of paths at or below UNDER.

    AT is when it was made, NODE the server that had taken it. `-o value` prints the ids alone.
    """
    from moat_kv.client import lost

    async with invocation.client() as client:
        found = await lost.find_all(client, under=under)
    if found or not out.for_people:
        out.rows(_COLUMNS, [_row(each, out) for each in found], bare="id")
    else:
        out.note("no conflicts")


@conflict.command(example="moat kv conflict show n1:1f6e0c2a:17")
@click.argument("id", metavar="ID")
@output.option
@command.pass_invocation
async def show(invocation: command.Invocation, /, id: str, out: output.Printer) -> None:
    """Show what was written, and what the path has now. `-o value` prints what was written."""
    from moat_kv.client import lost

    async with invocation.client() as client:
        found = await lost.find(client, id)
        present = await client.get(found.path)
    if out.format == "value":
        out.value(found.value)
        return
    now: dict[str, Any] = {"rev": present.rev}
    for name in ("value", "at", "id"):
        if name in present:
            now[name] = present[name]
    if present.pending:
        now["pending"] = True
    if not out.for_people:
        out.facts(_row(found, out) | {"present": now})
        return
    facts = _row(found, out)
    if facts.pop("deleted", False):
        facts["value"] = "(deleted)"
    facts["present"] = now.get("value", "(nothing)")
    facts["present rev"] = f"{present.rev} (pending)" if present.pending else present.rev
    out.facts(facts)


@conflict.command(
    example="moat kv conflict restore n1:1f6e0c2a:17\n"
    "moat kv conflict restore n1:1f6e0c2a:17 --expect 4711"
)
@click.argument("id", metavar="ID")
@click.option(
    "--expect", type=int, metavar="REV", help="Only if the path has this revision; 0: nothing."
)
@output.option
@command.pass_invocation
async def restore(
    invocation: command.Invocation, /, id: str, expect: int | None, out: output.Printer
) -> None:
    """Write what lost over what is there, and forget the conflict: both, or neither.

    Exit code 4 if others write the path at the same time, or it is not at --expect any more.
    """
    from moat_kv.client import lost

    async with invocation.client() as client:
        found = await lost.find(client, id)
        rev = await lost.restore(client, found, expect=expect)
    done = "deleted" if found.deleted else "restored"
    out.note(f"{found.path} {done}" + (f", revision {rev}" if rev else ""))
    if not out.for_people:
        out.done({"path": str(found.path), "rev": rev})


def _age(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = _AGE.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no time; write 30d, 12h, 15m or 90s", ctx, param)
    return float(match[1]) * _UNIT_S[match[2]]


@conflict.command(
    example="moat kv conflict clear n1:1f6e0c2a:17\nmoat kv conflict clear --older 30d\n"
    "moat kv conflict clear --all"
)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that are there.")
@click.option(
    "--older", "older_s", metavar="TIME", callback=_age, help="Those made before, such as 30d, 12h."
)
@output.option
@command.pass_invocation
async def clear(
    invocation: command.Invocation,
    /,
    ids: tuple[str, ...],
    every: bool,
    older_s: float | None,
    out: output.Printer,
) -> None:
    """Forget conflicts: what they kept is gone for good."""
    from moat_kv.client import lost

    if bool(ids) + every + (older_s is not None) != 1:
        raise command.fail("say which: some IDs, --older TIME, or --all")
    async with invocation.client() as client:
        if ids:
            chosen = [(await lost.find(client, id)).id for id in dict.fromkeys(ids)]
        else:
            before = time.time() - (older_s or 0.0)
            found = await lost.find_all(client)
            chosen = [each.id for each in found if every or each.at < before]
        await lost.clear(client, chosen)
    out.note(f"{output.counted(len(chosen), 'conflict')} forgotten")
    if not out.for_people:
        out.done({"count": len(chosen)})


def _row(each: LostWrite, out: output.Printer) -> dict[str, Any]:
    winner: Any = None
    if out.for_people:
        winner = "a forgotten deletion" if each.winner is None else each.winner.node
    elif each.winner is not None:
        winner = {"id": each.winner.id, "at": each.winner.at, "node": each.winner.node}
    row: dict[str, Any] = {"at": each.at, "path": str(each.path), "node": each.node}
    row |= {"deleted": True} if each.deleted else {"value": each.value}
    return row | {"winner": winner, "id": each.id}
