"""`moat kv net`: the servers of a network, as one of them sees it, and compared with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import asyncclick as click

from moat_kv import codec
from moat_kv.path import Path
from moat_kv_cli import command, output, verbs

if TYPE_CHECKING:
    from moat_kv import Client

_COLUMNS = [
    "node",
    "role",
    "state",
    "since",
    "revision",
    "lag",
    "outbox",
    "sessions",
    "memory",
    "version",
    "place",
]
#: So much of a hash is enough for people, in hexadecimal digits.
SHOWN_DIGITS = 16


@click.group(
    cls=command.Group,
    example="moat kv net list\nmoat kv --url tcp://a:27586 --url tcp://b:27586 net hash",
)
def net() -> None:
    """Look at the servers of the network."""


@net.command("list", example="moat kv net list\nmoat kv net list -o json")
@output.option
@command.pass_invocation
async def list_(invocation: command.Invocation, /, out: output.Printer) -> None:
    """List the servers that this one knows of, itself among them.

    STATE is `attached`, `cut off` (that server says so), or `silent` (nothing was heard of it for a
    while: it may have ended, or be cut off, or this one is); SINCE is when that began, LAG by how
    many revisions it is behind, OUTBOX how many writes wait there. `-o value` prints the names.
    """
    async with invocation.client() as client:
        reply = await client.request("servers", {}, repeat=True)
    show(codec.unpack(reply.value or b"\xc0") or [], out)


def show(servers: Sequence[Mapping[str, Any]], out: output.Printer) -> None:
    """Print the servers' facts."""
    rows = [_for_people(each) for each in servers] if out.for_people else servers
    out.rows(_COLUMNS, rows, bare="node")


def _for_people(facts: Mapping[str, Any]) -> dict[str, Any]:
    row = dict(facts)
    if isinstance(facts.get("memory_bytes"), int):
        row["memory"] = f"{facts['memory_bytes'] / 1e6:.0f} MB"
    if facts.get("state") == "silent":
        row["state"] = f"silent for {facts['heard_s']:.0f} s"
        row["lag"] = row["since"] = None
    return row


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

    The servers are those that --url, the environment or the settings name.

    Exit code 1 if they differ; then the first entries are shown that do, with what each server
    has there: revision and record.
    """
    place = Path() if path is None else path
    async with AsyncExitStack() as stack:
        clients = await _clients(invocation, stack)
        servers, found = await _compare(clients, place, limit)
    epochs = {row["epoch"] for row in servers}
    equal = len({row["hash"] for row in servers}) == 1 and len(epochs) == 1
    if out.for_people:
        shown = [{**row, "hash": row["hash"][:SHOWN_DIGITS]} for row in servers]
        out.rows(["node", "url", "rev", "entries", "hash"], shown)
        if found:
            out.line("")
            out.rows(["path", *found[0]["found"]], [{**row, **row["found"]} for row in found])
    elif out.format == "value":
        out.rows(["hash"], servers)
    else:
        out.value({"equal": equal, "servers": servers, "differences": found})
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
    servers = [
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
    return servers, found


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
