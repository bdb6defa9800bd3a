"""`moat kv status`: what the server says of itself."""

from __future__ import annotations

from typing import Any

import asyncclick as click

from moat_kv_cli import command, output, servers


@click.command(cls=command.Command, example="moat kv status\nmoat kv status -o json")
@output.option
@command.pass_invocation
async def status(invocation: command.Invocation, /, out: output.Printer) -> None:
    """Show the server's facts: its engine, revision, entries, clients, and what troubles it.

    Below them the other servers of its network, if there are any; see `moat kv net list`.
    """
    async with invocation.client() as client:
        facts = {"url": client.server.url, **await client.state()}
        facts["round_trip_ms"] = round(1000 * await client.ping(), 3)
    if not out.for_people:
        out.facts(facts)
        return
    others = facts.pop("servers")
    out.facts(_flat(facts))
    if len(others) > 1:
        out.note("")
        servers.show(others, out)


def _flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The facts of inner mappings beside the others, by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
