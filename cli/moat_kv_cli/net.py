"""`moat kv net`: several servers at a time."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import asyncclick as click

from moat_kv.path import Path
from moat_kv_cli import command, output, servers, verbs

if TYPE_CHECKING:
    from moat_kv import Client

#: So much of a hash is enough for people, in hexadecimal digits.
SHOWN_DIGITS = 16


@click.group(
    cls=command.Group,
    example="moat kv net list\nmoat kv --url tcp://a:27586 --url tcp://b:27586 net hash",
)
def net() -> None:
    """Look at the servers of a network, and compare what they have."""


@net.command(
    "hash",
    example="moat kv net hash\nmoat kv --url tcp://a:27586 --url tcp://b:27586 net hash one.two",
)
@click.argument("path", type=verbs.PATH, required=False)
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=20,
    metavar="N",
    help="Show so many entries that differ, at most. [20]",
)
@output.option
@command.pass_invocation
async def hash_(
    invocation: command.Invocation, /, path: Path | None, limit: int, out: output.Printer
) -> None:
    """Compare what servers have at and below PATH (all, if none is given), by hashes.

    Exit code 1 if they differ; then the first entries are shown that do, with what each server
    has there: revision and record.
    """
    place = Path() if path is None else path
    async with AsyncExitStack() as stack:
        clients = await _clients(invocation, stack)
        answers, found = await _compare(clients, place, limit)
    epochs = {row["epoch"] for row in answers}
    equal = len({row["hash"] for row in answers}) == 1 and len(epochs) == 1
    if out.for_people:
        shown = [{**row, "hash": row["hash"][:SHOWN_DIGITS]} for row in answers]
        out.rows(["node", "url", "rev", "entries", "hash"], shown)
        if found:
            out.line("")
            out.rows(["path", *found[0]["found"]], [{**row, **row["found"]} for row in found])
    elif out.format == "value":
        out.rows(["hash"], answers)
    else:
        out.value({"equal": equal, "servers": answers, "differences": found})
    if len(epochs) > 1:
        raise command.Refused(
            f"these are different trees, of the epochs {', '.join(sorted(epochs))}"
        )
    if not equal:
        raise command.Refused("the trees differ")


async def _clients(invocation: command.Invocation, stack: AsyncExitStack) -> list[Client]:
    """One for each URL. Raises CannotConnect if any server does not answer."""
    import moat_kv

    config = invocation.config
    return [
        await stack.enter_async_context(moat_kv.open_client(url, config=config))
        for url in invocation.url or config.client.url
    ]


async def _compare(
    clients: list[Client], path: Path, limit: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each server, and one for each entry that differs, at most `limit`."""
    from moat_kv.client import comparing

    if len({client.server.epoch for client in clients}) > 1:
        hashes = [await client.hash(path) for client in clients]
        limit = 0  # revisions say nothing of each other
    else:
        hashes = await comparing.hash_all(clients, path)
    answers = [
        {
            "node": client.server.node,
            "url": client.server.url,
            "epoch": client.server.epoch,
            "rev": one.rev,
            "entries": one.total.entries,
            "hash": one.total.packed.hex(),
        }
        for client, one in zip(clients, hashes, strict=True)
    ]
    found: list[dict[str, Any]] = []
    if limit and any(one.total != hashes[0].total for one in hashes):
        for difference in await comparing.differences(clients, path, limit=limit):
            found.append(await _shown(clients, difference.path))
    return answers, found


async def _shown(clients: list[Client], path: Path) -> dict[str, Any]:
    """What each server has at a path now: revision and record's id; `-` for nothing."""
    there: dict[str, str] = {}
    for index, client in enumerate(clients):
        name = client.server.node
        name = name if name not in there else f"{name} ({index + 1})"
        there[name] = await _shown_at(client, path)
    return {"path": str(path), "found": there}


async def _shown_at(client: Client, path: Path) -> str:
    if path and path[0] is None:
        return "system data"
    entry = await client.get(path)
    return f"{entry.rev} {entry.id}" if "value" in entry else "-"


net.add_command(servers.list_)
