"""`moat kv code stubs FOLDER`: have an editor know the names that scripts are given."""

from __future__ import annotations

import pathlib

import asyncclick as click

from moat_kv_cli import command

#: The file that pyright, and with it Pylance and other editors' servers, takes for more builtins.
FILE = "__builtins__.pyi"
_HEAD = "# Made by `moat kv code stubs`: the names that moat-kv's scripts are given.\n"
_NAMES = ("_P", "_Path", "_cfg", "_client", "_cls", "_digits", "_info", "_log", "_self")


def text() -> str:
    """The stub's content."""
    imports = "".join(f"    {name} as {name},\n" for name in _NAMES)
    return f"{_HEAD}from moat_kv_runner.names import (\n{imports})\n"


@click.command(
    "stubs", cls=command.Command, example="moat kv code stubs .\nmoat kv code stubs ~/scripts"
)
@click.argument("folder", metavar="FOLDER", type=click.Path(exists=True, file_okay=False))
def stubs(folder: str) -> None:
    """Write __builtins__.pyi into a folder, so that an editor there completes `_self.watch`.

    Editors that use pyright (Pylance, Neovim, Emacs, ...) read it from the folder that is opened.
    """
    place = pathlib.Path(folder, FILE)
    if place.exists() and not place.read_text(encoding="utf-8").startswith(_HEAD):
        raise command.Refused(f"{place} is there already, and was not made by this command")
    place.write_text(text(), encoding="utf-8")
    click.echo(str(place))
