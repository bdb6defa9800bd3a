"""`data PATH edit`: a value as YAML in the user's editor, written back if nobody else wrote it.

The text is kept in a file whenever it could not be stored, and the user is told where.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import tempfile
from typing import Any

import anyio
import asyncclick as click

from moat_kv import errors
from moat_kv_cli import command, entries, values


@click.command(
    cls=command.Command,
    example="moat kv data one.two.three edit\nEDITOR=nano moat kv data room edit",
)
@click.option("--new", is_flag=True, help="Begin an entry that is not there yet.")
@command.pass_invocation
async def edit(invocation: command.Invocation, /, new: bool) -> None:
    """Change a value as YAML in $VISUAL or $EDITOR; refused if others changed it meanwhile."""
    from moat_kv_cli import yamltext

    path = invocation.here
    async with invocation.client() as client:
        old = await client.get(path)
    if "value" not in old and not new:
        async with invocation.client() as client:
            error = await entries.not_found(client, path)
        error.facts.setdefault("hint", "--new begins one")
        raise error
    before = yamltext.to_yaml(old["value"]) if "value" in old else ""
    file = _write(before)
    kept = False
    try:
        await _run_editor(file)
        after = _read(file)
        if after == before:
            click.echo("nothing changed")
            return
        if _is_blank(after):
            raise click.ClickException("the text is empty: nothing changed (no value is null)")
        kept = True
        value = _parse(after, file)
        # The line may have been broken while the user thought, so it is made anew.
        async with invocation.client() as client:
            await _store(client, path, value, old, file)
        kept = False
    finally:
        if not kept:
            _remove(file)


async def _store(client: Any, path: Any, value: Any, old: Any, file: pathlib.Path) -> None:
    try:
        await client.set(path, value, expect=old.rev)
    except errors.Conflict as exc:
        hint = f"others changed it meanwhile; your text is in {file}"
        raise errors.Conflict(exc.path, exc.expect, exc.have, hint=hint) from exc
    except errors.MoatKvError as exc:
        exc.facts.setdefault("hint", f"your text is in {file}")
        raise


def _is_blank(text: str) -> bool:
    """Whether there is nothing but blanks and comments: the way to leave an editor in vain."""
    return all(not line or line.startswith("#") for line in map(str.strip, text.splitlines()))


def _parse(text: str, file: pathlib.Path) -> Any:
    from moat_kv_cli import yamltext

    try:
        return yamltext.from_yaml(text)
    except errors.BadValue as exc:
        exc.facts.setdefault("hint", f"your text is in {file}")
        raise


def _write(text: str) -> pathlib.Path:
    handle, name = tempfile.mkstemp(prefix="moat-", suffix=".yaml")
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    return pathlib.Path(name)


def _read(file: pathlib.Path) -> str:
    return values.read_text(str(file), "edit")


def _remove(file: pathlib.Path) -> None:
    file.unlink(missing_ok=True)


async def _run_editor(file: pathlib.Path) -> None:
    """Wait for the user's editor on the file. Raises ClickException if it failed."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    # The terminal is the editor's, so its three streams are passed on.
    try:
        ended = await anyio.run_process(
            [*shlex.split(editor), str(file)], stdin=None, stdout=None, stderr=None, check=False
        )
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise click.ClickException(f"cannot run the editor {editor!r}: {reason}") from exc
    if ended.returncode:
        raise click.ClickException(f"the editor {editor!r} ended with {ended.returncode}")
