"""The entry of the `moat` command: find the command, run it, end with the right exit code.

Installed as `moat` and `moat-kv`, and run by `python -m moat_kv_cli`. Groups of commands are
imported when they are used, so that a quick command stays quick.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Sequence

import anyio
import asyncclick as click

from moat_kv_cli import command, failures

_HERE = "moat_kv_cli"

kv = command.LazyGroup(
    "kv",
    help="A tree of values that a fleet shares, and the scripts that it runs.",
    example="moat kv server n1\nmoat kv data one.two set -e : 123\nmoat kv data one.two",
    show_global_options=True,
    lazy={
        "server": f"{_HERE}.server:server",
        "data": f"{_HERE}.data:data",
        "code": f"{_HERE}.code:code",
        "module": f"{_HERE}.module:module",
        "run": f"{_HERE}.run:run",
        "job": f"{_HERE}.run:job",
        "lock": f"{_HERE}.lock:lock",
        "error": f"{_HERE}.error:error",
        "conflict": f"{_HERE}.conflict:conflict",
        "model": f"{_HERE}.model:model",
        "log": f"{_HERE}.log:log",
        "net": f"{_HERE}.net:net",
        "status": f"{_HERE}.status:status",
        "cluster": f"{_HERE}.cluster:cluster",
        "completion": f"{_HERE}.complete:completion",
    },
)

cli = command.LazyGroup(
    "moat",
    help="The commands of MoaT; `moat kv` is all of them at present.",
    example="moat kv --help",
    show_global_options=True,
    lazy={},
)
cli.add_command(kv)


async def invoke(args: Sequence[str], *, prog_name: str = "moat") -> int:
    """Run one command in the present event loop; returns its exit code. Errors are printed.

    KeyboardInterrupt and cancellation pass through.
    """
    invocation = command.Invocation()
    # Known before the options are read: an error may come before --debug was.
    invocation.debug = "--debug" in args
    try:
        result = await cli.main(
            list(args),
            prog_name=prog_name,
            complete_var="_MOAT_COMPLETION_IS_OURS",
            standalone_mode=False,
            obj=invocation,
        )
        sys.stdout.flush()
    except (Exception, BaseExceptionGroup) as exc:
        return report(failures.root_cause(exc), debug=invocation.debug, whole=exc)
    return result if isinstance(result, int) else command.FINE


def report(exc: BaseException, *, debug: bool, whole: BaseException | None = None) -> int:
    """Tell the user of an error; the exit code for it."""
    if isinstance(exc, click.exceptions.NoArgsIsHelpError):
        print(exc.message, file=sys.stderr)
        return command.BAD_USAGE
    if isinstance(exc, BrokenPipeError):
        # Whoever read our output has gone; nothing more may be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return command.FAILED
    if debug and not isinstance(exc, click.ClickException | KeyboardInterrupt):
        import traceback

        traceback.print_exception(whole or exc)
    text = failures.line(exc)
    if text is not None:
        print(text, file=sys.stderr)
    return failures.exit_code(exc)


def main() -> None:
    """Run the command that the process was started with, and end the process."""
    args = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that lacks a letter is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    if "_MOAT_COMPLETE" in os.environ:
        from moat_kv_cli import complete

        sys.exit(complete.answer())
    try:
        code = anyio.run(_invoke, args, backend_options={"use_uvloop": _stays(args)})
    except KeyboardInterrupt:
        code = command.INTERRUPTED
    sys.exit(code)


async def _invoke(args: list[str]) -> int:
    return await invoke(args)


def _stays(args: Sequence[str]) -> bool:
    """Whether uvloop is worth its import: for what runs long, and where it is installed."""
    words = [each for each in args if not each.startswith("-")]
    # Global options with values may stand before these.
    serves = ("kv", "server") in itertools.pairwise(words)
    if not serves and not {"all", "everything", "run"} & set(words[2:]):
        return False
    import importlib.util

    return importlib.util.find_spec("uvloop") is not None
