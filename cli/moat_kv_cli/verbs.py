"""`PATH [verb]`: groups whose first word is a path and whose verb may be left out.

Used by `data`, `code`, `module` and `run at`. `PATH [options]` means `PATH get [options]`. A verb
where a path belongs is not taken as the path of an entry without asking: it gets a hint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncclick as click

from moat_kv import errors
from moat_kv.path import P, Path
from moat_kv_cli import command

if TYPE_CHECKING:
    from moat_kv import Client


Base: TypeAlias = "Callable[[command.Invocation, Client], Awaitable[Path]]"


class PathGroup(command.Group):
    """`GROUP PATH [VERB] ...`, and commands that take no path (`add_other`).

    The verb's command finds the path as `Invocation.here`. `base` says where in the tree the paths
    begin, for completion; None: at the root.
    """

    def __init__(
        self,
        *args: Any,
        default: str = "get",
        base: Base | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("subcommand_metavar", "PATH [VERB] [ARGUMENTS]...")
        super().__init__(*args, **kwargs)
        self.default = default
        self.base = base
        self.others: dict[str, click.Command] = {}

    def add_other(self, cmd: click.Command) -> None:
        """Add a command that takes no path, such as `code load DIR`."""
        self.others[str(cmd.name)] = cmd

    async def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        text, rest = args[0], args[1:]
        has_verb = bool(rest) and rest[0] in self.commands
        if text in self.others and not has_verb:
            return text, self.others[text], rest
        if text in self.commands and not has_verb and not ctx.resilient_parsing:
            raise click.UsageError(self._hint(ctx, text, rest), ctx)
        self._set_path(ctx, text)
        if has_verb:
            return f"PATH {rest[0]}", self.commands[rest[0]], rest[1:]
        if not rest and ctx.resilient_parsing:
            return None, None, rest  # completion: a verb may follow
        if not rest or rest[0].startswith("-"):
            return f"PATH {self.default}", self.commands[self.default], rest
        if ctx.resilient_parsing:
            return None, None, rest
        known = ", ".join(self.commands)
        raise click.UsageError(f"no verb {rest[0]!r}; after a path may come: {known}", ctx)

    def _set_path(self, ctx: click.Context, text: str) -> None:
        invocation = ctx.find_object(command.Invocation)
        assert invocation is not None
        try:
            invocation.path = P(text)
        except errors.BadPath as exc:
            if not ctx.resilient_parsing:
                raise click.UsageError(str(exc), ctx) from exc

    def _hint(self, ctx: click.Context, verb: str, rest: list[str]) -> str:
        prefix = ctx.command_path
        if rest and not rest[0].startswith("-"):
            return f"the path comes before the verb: {prefix} {rest[0]} {verb}"
        return (
            f"{verb!r} is a verb, and a path comes first: `{prefix} : {verb}` for the root, "
            f"`{prefix} {verb} {self.default}` for an entry of that name"
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = [(name, each) for name, each in self.commands.items() if not each.hidden]
        limit = formatter.width - max(len(name) for name, _ in shown) - len("  PATH   ")
        rows = [(f"PATH {name}", each.get_short_help_str(limit)) for name, each in shown]
        with formatter.section("Verbs"):
            formatter.write_dl(rows)
        if self.others:
            with formatter.section("Commands"):
                others = self.others.items()
                rows = [(name, each.get_short_help_str(formatter.width)) for name, each in others]
                formatter.write_dl(rows)


class PathType(click.ParamType[Path]):
    """An option or argument that is a path; its text is checked when it is read.

    `base` says where in the tree such paths begin, for completion; None: at the root.
    """

    name = "path"

    def __init__(self, base: Base | None = None) -> None:
        self.base = base

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if isinstance(value, Path):
            return value
        try:
            return P(value)
        except errors.BadPath as exc:
            self.fail(str(exc), param, ctx)


class BelowRootType(PathType):
    """The path of something that cannot be at the root."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = super().convert(value, param, ctx)
        if not path:
            self.fail("a path below the root is needed, not :", param, ctx)
        return path


class ErrorPathType(PathType):
    """The path of something that has an error; only these are completed."""


async def _procedures(invocation: command.Invocation, client: Client) -> Path:
    from moat_kv import config

    return (await config.load_places(client)).proc


PATH = PathType()
PROCEDURE = BelowRootType(_procedures)
LOCK = BelowRootType()
WITH_ERROR = ErrorPathType()
