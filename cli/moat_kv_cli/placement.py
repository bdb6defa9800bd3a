"""Which jobs a command is about: `-n NODE|-` and `-g GROUP`, and where these are in the tree.

Used by `run` and what is below it. The options may be given before or after a command's name, and
mean the same; given twice and different is bad usage.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import asyncclick as click

from moat_kv import config, errors
from moat_kv.client import results
from moat_kv.path import P, Path
from moat_kv_cli import command

if TYPE_CHECKING:
    from moat_kv import Client

_F = TypeVar("_F", bound=Callable[..., Any])

#: As the node of `-n`: all nodes.
EVERY_NODE = "-"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One kind of jobs of one group."""

    node: str | None
    """None: any node; `-`: all nodes; else the name of one."""
    group: Path

    @property
    def kind(self) -> str:
        """`any`, `at` or `all`, as in the tree."""
        if self.node is None:
            return "any"
        return "all" if self.node == EVERY_NODE else "at"

    @property
    def prefix(self) -> Path:
        """Below the places of jobs and of states alike."""
        return Path(self.kind, *([self.node] if self.kind == "at" else [])) + self.group

    def __str__(self) -> str:
        where = {"any": "any node", "all": "all nodes", "at": f"node {self.node}"}[self.kind]
        return f"{where} of group {self.group}"


_NODE_HELP = "Jobs of this node; - is all nodes; without -n, any node."


def options(function: _F) -> _F:
    """Give a command `-n` and `-g`; `of` tells what they said."""
    return options_with(_NODE_HELP)(function)


def options_with(node_help: str) -> Callable[[_F], _F]:
    """The same, where `-n` means something of its own."""
    return functools.partial(_give, node_help=node_help)


def _give(function: _F, *, node_help: str) -> _F:
    for decorate in (
        click.option(
            "-g",
            "--group",
            "group",
            multiple=True,
            metavar="GROUP",
            expose_value=False,
            callback=_keep_group,
            help="The group of nodes. [default]",
        ),
        click.option(
            "-n",
            "--node",
            "node",
            multiple=True,
            metavar="NODE",
            expose_value=False,
            callback=_keep_node,
            help=node_help,
        ),
    ):
        function = decorate(function)
    return function


def of(invocation: command.Invocation) -> Placement:
    """What was given, with the settings' group where none was."""
    text = invocation.group or invocation.config.runner.group
    group = P(text)
    return Placement(node=invocation.node, group=group)


def _keep_node(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    for name in value:
        if name != EVERY_NODE:
            check_name(name, ctx)
    _keep(ctx, "node", "-n", value)


def _keep_group(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    for text in value:
        read_group(text, ctx)
    _keep(ctx, "group", "-g", value)


def read_group(text: str, ctx: click.Context | None = None) -> Path:
    """The group that `-g` names. Raises UsageError for what can be none."""
    try:
        group = P(text)
    except errors.BadPath as exc:
        raise command.fail(f"-g: {exc}", ctx) from exc
    if not group:
        raise command.fail("-g: a group is a path below the root", ctx)
    return group


def _keep(ctx: click.Context, name: str, option: str, value: tuple[str, ...]) -> None:
    invocation = ctx.find_object(command.Invocation)
    assert invocation is not None
    said = {*value, *filter(None, [getattr(invocation, name)])}
    if len(said) > 1 and not ctx.resilient_parsing:
        raise command.fail(f"{option} is given twice, and differs: {', '.join(sorted(said))}", ctx)
    if said:
        setattr(invocation, name, said.pop())


def check_name(name: str, ctx: click.Context | None = None) -> str:
    """A runner's name. Raises UsageError for what can be none."""
    if name.isdecimal():
        raise command.fail(
            f"{name!r} is no node's name; how many nodes a group has is said with --nodes", ctx
        )
    if not name or name == EVERY_NODE or name.startswith("-"):
        raise command.fail(f"{name!r} is no node's name", ctx)
    return name


def places_of(placement: Placement, places: config.Places) -> tuple[Path, Path]:
    """Where the jobs and their states are."""
    return places.run + placement.prefix, places.state + placement.prefix


async def members(client: Client, group: Path) -> results.Members:
    """The runners that serve a group now, by name, in order."""
    place = (await config.load_places(client)).group + group
    async with client.watch_group(place) as changes:
        async for seen in changes:
            if seen is not None:
                found = results.Members(sorted(seen.items()))
                found.parted = seen.parted
                return found
    return results.Members()
