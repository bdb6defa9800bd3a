"""`moat kv net list`: the servers of a network, as one of them sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncclick as click

from moat_kv import codec
from moat_kv_cli import command, output

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


@click.command("list", cls=command.Command, example="moat kv net list\nmoat kv net list -o json")
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
