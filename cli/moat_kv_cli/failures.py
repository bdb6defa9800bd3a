"""From an exception to an exit code and one line.

Called by `main` alone, once, with whatever a command raised. Cancellation never comes here.
"""

from __future__ import annotations

import asyncclick as click

from moat_kv import errors
from moat_kv_cli import command

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (KeyboardInterrupt, command.INTERRUPTED),
    (click.Abort, command.INTERRUPTED),
    (click.UsageError, command.BAD_USAGE),
    (errors.CannotConnect, command.CANNOT_CONNECT),
    (errors.Disconnected, command.CANNOT_CONNECT),
    (errors.EngineUnreachable, command.CANNOT_CONNECT),
    (errors.NotFound, command.NOT_FOUND),
    (errors.Conflict, command.CONFLICT),
    (errors.GuardFailed, command.CONFLICT),
    (errors.Unknown, command.CONFLICT),
    (errors.Detached, command.CONFLICT),
    (errors.Behind, command.CONFLICT),
    (errors.SessionExpired, command.CONFLICT),
    (errors.NameTaken, command.CONFLICT),
    (errors.AlreadyLocked, command.CONFLICT),
    (errors.LockLost, command.CONFLICT),
    (errors.BadPath, command.BAD_USAGE),
    (errors.BadConfig, command.BAD_USAGE),
    (errors.BadArguments, command.BAD_USAGE),
)


def root_cause(exc: BaseException) -> BaseException:
    """The one error to tell of, out of a group: ours before others, else the first."""
    while isinstance(exc, BaseExceptionGroup):
        ours = [each for each in exc.exceptions if isinstance(each, errors.MoatKvError)]
        exc = ours[0] if ours else exc.exceptions[0]
    return exc


def exit_code(exc: BaseException) -> int:
    """0 to 130, see `command`; what is not known is a failure."""
    for kind, code in _CODES:
        if isinstance(exc, kind):
            return code
    return exc.code if isinstance(exc, command.Refused) else command.FAILED


def line(exc: BaseException) -> str | None:
    """What to print, in one line; None if nothing has to be said."""
    if isinstance(exc, KeyboardInterrupt | click.Abort | BrokenPipeError):
        return None
    if isinstance(exc, click.UsageError):
        return _usage_line(exc)
    if isinstance(exc, click.ClickException):
        text = exc.format_message()
    elif isinstance(exc, errors.MoatKvError):
        text = str(exc)
    elif isinstance(exc, OSError) and exc.strerror:
        text = f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    else:
        text = f"{type(exc).__name__}: {exc} (--debug shows where)"
    return "moat: " + _one_line(text)


def _usage_line(exc: click.UsageError) -> str:
    where = exc.ctx.command_path if exc.ctx is not None else "moat"
    text = _one_line(exc.format_message()).rstrip(".")
    return f"{where}: {text} (--help says more)"


def _one_line(text: str) -> str:
    return " ".join(text.split())
