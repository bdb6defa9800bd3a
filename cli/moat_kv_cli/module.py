"""`moat kv module PATH [verb]`: stored Python modules."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import asyncclick as click

from moat_kv import errors
from moat_kv.path import Path
from moat_kv_cli import command, manifest, output, stored, values, verbs

if TYPE_CHECKING:
    from moat_kv import Client


def check(name: str, value: Mapping[str, Any]) -> None:
    """Raises BadCode or BadValue for a module that could not be imported."""
    from moat_kv.code import compiling, requires

    compiling.compile_module(value["code"], name=name)
    requires.parse(value.get("requires"))
    if not isinstance(value.get("override", False), bool):
        raise errors.BadValue("true or false", "override")


KIND = stored.Kind("module", "module", check, ("requires",), example="onewire.bus")


@click.group(
    cls=verbs.PathGroup,
    base=lambda invocation, client: KIND.base(client),
    example="moat kv module onewire.bus set -s bus.py\nmoat kv module : list",
)
def module() -> None:
    """Look at and change modules, which procedures import by their path."""


stored.register(module, KIND)
module.add_other(manifest.load)


@module.command(
    "set", example="moat kv module onewire.bus set -s bus.py --require onewire.owserver"
)
@click.option("-s", "--script", metavar="FILE", help="The text; - is standard input.")
@stored.requires_option
@click.option(
    "--override/--no-override",
    default=None,
    help="Whether it goes before an installed module of that name. [no]",
)
@click.option("--version", metavar="TEXT", help="What you call this version.")
@click.option("-i", "--info", metavar="TEXT", help="What it is for, in a line.")
@output.option
@command.pass_invocation
async def set_(
    invocation: command.Invocation,
    /,
    script: str | None,
    requires: tuple[str, ...],
    override: bool | None,
    version: str | None,
    info: str | None,
    out: output.Printer,
) -> None:
    """Store a module, or change what is stored with it; it must compile."""
    given: dict[str, Any] = {"version": version, "info": info, "override": override}
    if script is not None:
        given["code"] = values.read_text(script, "-s")
    given["requires"] = stored.listed(requires, "--require")
    attributes = {key: value for key, value in given.items() if value is not None}
    if not attributes:
        raise command.fail("nothing to set; give the text with -s FILE (-s - to pipe)")
    path = module_path(invocation.here)
    async with invocation.client() as client:
        result = await stored.store(client, KIND, path, attributes)
        if script is not None:
            await _warn_if_shadowed(client, path)
    out.done({"path": str(path), "rev": result.rev, "at": result.at})


async def _warn_if_shadowed(client: Client, path: Path) -> None:
    value = (await client.get(await KIND.base(client) + path)).get("value")
    top = str(Path(path[0]))
    own = isinstance(value, Mapping) and value.get("override") is True
    installed = importlib.machinery.PathFinder.find_spec(top) is not None
    if not own and (installed or top in sys.stdlib_module_names):
        click.echo(
            f"moat: a module {top} is installed here, and goes before this one; "
            "--override changes that",
            err=True,
        )


def module_path(path: Path) -> Path:
    """The path, if a module can have it. Raises UsageError."""
    from moat_kv.code import requires

    try:
        requires.module_name(path)
    except errors.BadValue as exc:
        raise command.fail(str(exc.reason)) from exc
    return path
