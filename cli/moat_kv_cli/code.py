"""`moat kv code PATH [verb]`: stored procedures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import asyncclick as click

from moat_kv import errors
from moat_kv.path import Path
from moat_kv_cli import command, manifest, output, stored, stubs, trying, values, verbs


def check(name: str, value: Mapping[str, Any]) -> None:
    """Raises BadCode or BadValue for a procedure that could not run."""
    from moat_kv.code import compiling, requires

    compiling.compile_procedure(
        value["code"],
        name=name,
        is_async=value.get("is_async"),
        variables=value.get("vars") or (),
    )
    requires.parse(value.get("requires"))
    if not isinstance(value.get("default", {}), dict):
        raise errors.BadValue("the default values are a mapping", "default")


KIND = stored.Kind("procedure", "proc", check, ("kind", "vars"), example="the.answer")


@click.group(
    cls=verbs.PathGroup,
    base=lambda invocation, client: KIND.base(client),
    example="printf 'return 42' | moat kv code the.answer set -s -\n"
    "moat kv code the.answer\n"
    "moat kv code load examples/onewire",
)
def code() -> None:
    """Look at and change procedures. PATH alone prints the text; `: list` lists all."""


stored.register(code, KIND)
code.add_other(manifest.load)
code.add_other(stubs.stubs)


@code.command(
    "set",
    example="moat kv code the.answer set -s answer.py\n"
    "moat kv code blink set -s blink.py --var pin -e pin 17 -i 'the lamp at the door'",
)
@click.option("-s", "--script", metavar="FILE", help="The text; - is standard input.")
@click.option("-a", "flavour", flag_value="async", help="It is async. This is the default.")
@click.option("-A", "flavour", flag_value="sync", help="It is synchronous, and quick.")
@click.option("-t", "flavour", flag_value="thread", help="It is synchronous, in a worker thread.")
@click.option(
    "--var", "names", multiple=True, metavar="NAME", help="A parameter; repeatable; -: none."
)
@stored.requires_option
@click.option("--version", metavar="TEXT", help="What you call this version.")
@click.option("-i", "--info", metavar="TEXT", help="What it does, in a line.")
@values.options
@output.option
@command.pass_invocation
async def set_(
    invocation: command.Invocation,
    /,
    script: str | None,
    flavour: str | None,
    names: tuple[str, ...],
    requires: tuple[str, ...],
    version: str | None,
    info: str | None,
    out: output.Printer,
    texts: tuple[tuple[str, str], ...],
    literals: tuple[tuple[str, str], ...],
    paths: tuple[tuple[str, str], ...],
    yaml_file: str | None,
) -> None:
    """Store a procedure, or change what is stored with it; it must compile.

    The value options are the parameters' defaults.
    """
    default = values.read(texts, literals, paths, yaml_file)
    given: dict[str, Any] = {"version": version, "info": info}
    if script is not None:
        given["code"] = values.read_text(script, "-s")
    given["vars"] = stored.listed(names, "--var")
    given["requires"] = stored.listed(requires, "--require")
    attributes = {key: value for key, value in given.items() if value is not None}
    if flavour is not None:
        attributes["is_async"] = {"async": True, "sync": None, "thread": False}[flavour]
    if not attributes and not default:
        raise command.fail("nothing to set; give the text with -s FILE (-s - to pipe)")
    path = _named(invocation.here)
    async with invocation.client() as client:
        old = await client.get(await KIND.base(client) + path)
        if "value" not in old:
            attributes.setdefault("is_async", True)
        result = await stored.store(client, KIND, path, attributes, default)
    out.done({"path": str(path), "rev": result.rev, "at": result.at})


def _named(path: Path) -> Path:
    if not path:
        raise command.fail("a procedure needs a path below the root")
    return path


trying.register_run(code, KIND)
