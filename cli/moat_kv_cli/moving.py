"""`moat kv run drain NODE` and `rebalance`: where a group's jobs for any node are, changed by hand.

Both ask the runners, by the group's settings or by a message, and tell what came of it; they write
no claim themselves.
"""

from __future__ import annotations

from typing import Any

import anyio
import asyncclick as click

from moat_kv import Client, config, errors
from moat_kv.path import Path
from moat_kv_cli import command, entries, output, placement
from moat_kv_runner import claims, group_settings, serving

#: How long the jobs may take to move, in seconds.
PATIENCE_S = 30.0
#: How often it is looked whether they have.
_LOOK_S = 0.1
#: When nothing has changed in so many looks, it is over. (Looks, not seconds: where this process
#: gets no time to run, the runners may have got none either.)
_STEADY_LOOKS = 15


#: The jobs that each runner has.
_Held = dict[str, set[Path]]


def _group(invocation: command.Invocation) -> placement.Placement:
    """The group; only jobs for any node can be moved. Raises UsageError."""
    which = placement.of(invocation)
    if which.kind != "any":
        raise command.fail("only jobs for any node move; leave -n out")
    return which


@click.command(cls=command.Command, example="moat kv run drain pi3\nmoat kv run drain pi3 --undo")
@click.argument("name", metavar="NODE")
@click.option("--undo", is_flag=True, help="Let it take jobs again.")
@placement.options
@output.option
@command.pass_invocation
async def drain(
    invocation: command.Invocation, /, name: str, undo: bool, out: output.Printer
) -> None:
    """Move the jobs for any node off NODE, and keep them off until `--undo`.

    Jobs for that node alone stay. It holds over restarts; `moat kv run info` shows it.
    """
    which = _group(invocation)
    placement.check_name(name)
    async with invocation.client() as client:
        places = await config.load_places(client)
        jobs, _ = placement.places_of(which, places)
        held = await _held(client, places.claim + which.prefix)
        await entries.change(client, jobs, lambda old: _settings(old, name, undo=undo))
        members = await placement.members(client, which.group)
        if undo:
            out.note(f"{name} takes jobs of group {which.group} again")
            return
        if name not in members:
            out.note(
                f"no runner {name} serves group {which.group} now; it takes no jobs when it comes,"
                " until `--undo`"
            )
        now = await _steady(client, places.claim + which.prefix, without=name)
    if now.get(name):
        raise command.Refused(
            f"{output.counted(len(now[name]), 'job')} of {name} not moved after {PATIENCE_S:g} s:"
            f" {', '.join(map(str, sorted(now[name])))}"
        )
    rows = _where(held.get(name, set()), now)
    out.rows(["path", "node"], rows)


def _settings(old: Any, node: str, *, undo: bool) -> dict[str, Any]:
    """A group's settings with a node among the drained, or without."""
    settings = dict(old) if isinstance(old, dict) else {}
    drained = set(group_settings.parse(settings).drained)
    drained = drained - {node} if undo else drained | {node}
    settings["drained"] = sorted(drained)
    if not drained:
        del settings["drained"]
    return settings


async def _held(client: Client, base: Path) -> _Held:
    """The jobs that each runner has, below the claims of a group."""
    found: _Held = {}
    async for each in client.get_tree(base):
        holder = claims.holder_of(each.value)
        if holder is not None:
            found.setdefault(holder, set()).add(each.path)
    return found


async def _steady(client: Client, base: Path, *, without: str | None = None) -> _Held:
    """Who has what when that does not change any more; at the latest after `PATIENCE_S`.

    `without`: a node that is to have nothing.
    """
    give_up_at = anyio.current_time() + PATIENCE_S
    now, looks = await _held(client, base), 0
    while anyio.current_time() < give_up_at:
        if not now.get(without or "") and looks >= _STEADY_LOOKS:
            break
        await anyio.sleep(_LOOK_S)
        before, now = now, await _held(client, base)
        looks = looks + 1 if now == before else 0
    return now


def _where(moved: set[Path], now: _Held) -> list[dict[str, Any]]:
    holders = {path: node for node, paths in now.items() for path in paths}
    return [{"path": str(path), "node": holders.get(path)} for path in sorted(moved)]


@click.command(
    cls=command.Command, example="moat kv run rebalance\nmoat kv run -g heating rebalance"
)
@placement.options
@output.option
@command.pass_invocation
async def rebalance(invocation: command.Invocation, /, out: output.Printer) -> None:
    """Spread the group's jobs for any node anew, by the weights of its nodes.

    Runs that move are ended and begun anew elsewhere.
    """
    which = _group(invocation)
    async with invocation.client() as client:
        places = await config.load_places(client)
        members = await placement.members(client, which.group)
        if not members:
            raise errors.NotFound("runner of group", str(which.group), hint="none to spread among")
        base = places.claim + which.prefix
        before = await _held(client, base)
        await client.send(serving.rebalance_topic(places, which.group), None)
        after = await _steady(client, base)
    names = sorted({*members, *before, *after})
    rows = [
        {"node": name, "before": len(before.get(name, ())), "now": len(after.get(name, ()))}
        for name in names
    ]
    out.rows(["node", "before", "now"], rows)
