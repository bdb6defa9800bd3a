"""What all commands share: global options, an example in every help, one line for every error.

Each module with commands makes them from `Command` and `Group`; `main` makes the `Invocation` that
they find as their context's object. This module is on the way of every command, so it imports
nothing that takes long: neither the client nor tables nor YAML.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import asyncclick as click

if TYPE_CHECKING:
    from moat_kv import Client
    from moat_kv.config import Config
    from moat_kv.path import Path

#: Exit codes, the same for all commands.
FINE, FAILED, CANNOT_CONNECT, NOT_FOUND, CONFLICT, BAD_USAGE, INTERRUPTED = 0, 1, 2, 3, 4, 128, 130

_F = TypeVar("_F", bound=Callable[..., Any])


class Invocation:
    """One run of the command: what the global options said, and the path that a verb works on."""

    def __init__(self) -> None:
        self.config_file: str | None = None
        self.url: tuple[str, ...] = ()
        self.debug = False
        self.verbose = False
        #: Set by a `PathGroup` before its verb runs.
        self.path: Path | None = None
        #: `-n` and `-g` of `moat kv run`, wherever they were given; None: not given.
        self.node: str | None = None
        self.group: str | None = None
        self._config: Config | None = None

    @property
    def config(self) -> Config:
        """The settings, read when first asked for. Raises BadConfig."""
        if self._config is None:
            from moat_kv import config

            self._config = config.load(self.config_file)
        return self._config

    @property
    def here(self) -> Path:
        """The path that was given to this command's group."""
        assert self.path is not None, "this verb is not below a group of paths"
        return self.path

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client of the server that the flags, the environment or the file name.

        If the server has kept writes because it is cut off, that is told at the end. Raises
        CannotConnect at once if none answers.
        """
        import moat_kv

        async with moat_kv.open_client(self.url or None, config=self.config) as client:
            try:
                yield client
            finally:
                if client.kept_writes:
                    tell_kept(client)

    @asynccontextmanager
    async def staying_client(self) -> AsyncIterator[Client]:
        """The same for who watches: a break of the line is told, and its end."""
        async with self.client() as client:
            remove = client.add_connection_listener(_tell_line)
            try:
                yield client
            finally:
                remove()

    def start_logging(self) -> None:
        """Log lines on standard error, for the commands that stay (server, runner)."""
        import logging

        level = logging.DEBUG if self.debug else logging.INFO if self.verbose else logging.WARNING
        form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        logging.basicConfig(stream=sys.stderr, level=level, format=form)


def _tell_line(is_up: bool) -> None:
    click.echo(f"moat: {'connected again' if is_up else 'disconnected; trying again'}", err=True)


def tell_kept(client: Client, what: str = "") -> None:
    """Say that something is durable on the server, and may still lose against another write."""
    click.echo(f"moat: {what}kept on {client.server.node}; not in the network yet", err=True)


pass_invocation = click.make_pass_decorator(Invocation)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Store a global option in the invocation, whichever command it was given to."""
    invocation = ctx.find_object(Invocation)
    if invocation is not None and value not in (None, (), False):
        assert param.name is not None
        setattr(invocation, param.name, value)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from moat_kv import version

        click.echo(f"moat-kv {version.VERSION}")
        raise click.exceptions.Exit(FINE)


def _global_options(*, hidden: bool) -> list[click.Parameter]:
    common: dict[str, Any] = {"expose_value": False, "callback": _keep, "hidden": hidden}
    return [
        click.Option(
            ["--url"],
            multiple=True,
            metavar="URL",
            help="A server, tcp://HOST:PORT or unix:///PATH; may be repeated. [MOAT_KV_URL]",
            **common,
        ),
        click.Option(
            ["--config", "config_file"],
            metavar="FILE",
            help="The settings, YAML. [MOAT_KV_CONFIG]",
            **common,
        ),
        click.Option(["--verbose"], is_flag=True, help="Log more; long only.", **common),
        click.Option(["--debug"], is_flag=True, help="Show tracebacks of errors.", **common),
    ]


#: Of the topmost groups only: further in, a version is that of a procedure.
_VERSION = click.Option(
    ["--version"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
_SHOWN = [*_global_options(hidden=False), _VERSION]
_HIDDEN = _global_options(hidden=True)


class Command(click.Command):
    """A command whose help ends with an example, and which takes the global options anywhere."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    async def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return await super().parse_args(ctx, args)
        except click.UsageError as exc:
            exc.ctx = exc.ctx or ctx  # so that the line says of which command
            raise

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        return [*params[:-1], *_HIDDEN, *params[-1:]]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_example(self.example, formatter)


class FiniteRange(click.FloatRange):
    """A number within bounds; `nan` and `inf`, which every comparison lets pass, are none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return super().convert(value, param, ctx)


class Group(click.Group):
    """A group of commands; alone it prints its help and counts as bad usage."""

    command_class = Command

    def __init__(
        self, *args: Any, example: str = "", show_global_options: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self._global_options = _SHOWN if show_global_options else _HIDDEN

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        return [*params[:-1], *self._global_options, *params[-1:]]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which a reader needs them

    async def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            known = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"no command {args[0]!r}; there are: {known}", ctx)
        return await super().resolve_command(ctx, args)

    async def invoke(self, ctx: click.Context) -> Any:
        # Options alone, as in `run -g default`, are a bare group too.
        if not ctx._protected_args and not self.invoke_without_command:
            raise click.exceptions.NoArgsIsHelpError(ctx)
        return await super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_example(self.example, formatter)


def _write_example(example: str, formatter: click.HelpFormatter) -> None:
    if example:
        with formatter.section("Example"):
            for line in example.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class LazyGroup(Group):
    """A group whose commands are imported when they are asked for.

    `lazy` maps a command's name to `module:attribute`.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._lazy, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._lazy.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    async def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self._lazy and args[0] not in self.commands:
            if ctx.resilient_parsing:
                return None, None, args[1:]
            raise click.UsageError(self._unknown(ctx, args[0]), ctx)
        return await super().resolve_command(ctx, args)

    def _unknown(self, ctx: click.Context, word: str) -> str:
        for name, inner in self.commands.items():
            if isinstance(inner, click.Group) and word in inner.list_commands(ctx):
                return f"write `{ctx.command_path} {name} {word}`"
        return f"no command {word!r}; there are: {', '.join(self.list_commands(ctx))}"


class Refused(click.ClickException):
    """What the user asked for cannot be; ends with that exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def fail(message: str, ctx: click.Context | None = None) -> click.UsageError:
    """Bad usage with that message, to be raised."""
    return click.UsageError(message, ctx)
