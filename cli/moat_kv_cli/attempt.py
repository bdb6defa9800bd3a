"""One trial of a script at a desk, told as it happens.

Called by `trying`'s two commands. Nothing is claimed, and no state is written. What the script
reads comes from the server, but for what is faked; what it writes stays in this process unless it
is let through. Its output and its result go to standard output, what happens to it to standard
error. `moat_kv_runner.trying` does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import asyncclick as click

from moat_kv import config
from moat_kv.path import Path
from moat_kv_cli import command, output, plain, values

if TYPE_CHECKING:
    from moat_kv import Client
    from moat_kv_runner.trying import happenings

#: A script that does not heed its end is given up after so many seconds, and this process with it.
GIVE_UP_S = 7.0
#: What of a value is shown.
_SHOWN = 240


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the options of a trial say."""

    fakes: Mapping[Path, Any]
    """`values.NOTHING`: there is no entry."""
    real: bool
    limit_s: float | None
    quiet: bool


@dataclass(frozen=True, kw_only=True)
class Found:
    """A procedure, and with what it is to be run."""

    value: Any
    name: str
    rev: int
    data: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """More for `trial.Script`."""


async def attempt(
    invocation: command.Invocation,
    wish: Wish,
    find: Callable[[Client], Awaitable[Found]],
    out: output.Printer,
) -> int:
    """Run what `find` finds, and tell all of it; the exit code."""
    from moat_kv_runner import readiness

    teller = _Teller(wish, debug=invocation.debug)
    async with invocation.client() as client:
        found = await find(client)
        wanted = found.value.get("backend") if isinstance(found.value, Mapping) else None
        if wanted in (None, readiness.backend()):
            return await _attempt(client, found, wish, out, teller)

    async def elsewhere() -> int:
        async with invocation.client() as client:
            return await _attempt(client, found, wish, out, teller)

    # Another kind of event loop, beside this one; ^C ends the process with it.
    run = functools.partial(anyio.run, elsewhere, backend=wanted)
    code: int = await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
    return code


async def _attempt(
    client: Client, found: Found, wish: Wish, out: output.Printer, teller: _Teller
) -> int:
    from moat_kv.code import ModuleRoot
    from moat_kv_runner import execution
    from moat_kv_runner.trying import ground, trial

    places = await config.load_places(client)
    modules = await ModuleRoot.as_handler(client, places=places)
    facts = found.facts
    script = trial.script_of(found.value, name=found.name, rev=found.rev, data=found.data, **facts)
    modules.order(script.needs, needed_by=found.name)
    running = ground.running_ground(real=client, faked=wish.fakes, lets_through=wish.real)
    async with running as on, on.line(teller.tell) as line:
        for path, value in wish.fakes.items():
            if value is not values.NOTHING:
                await on.desk.set(path, value)
        one = trial.Trial(
            script,
            line=line,
            desk=on.desk,
            tell=teller.tell,
            places=places,
            load=lambda: modules.load(script.needs, needed_by=found.name),
        )
        with _given_up(wish.limit_s), teller.telling(), _interruptible() as interrupted:
            try:
                with anyio.move_on_after(wish.limit_s) as scope, interrupted.scope:
                    result = await one.run()
            except Exception as exc:  # of the script, whatever it is; its author is told
                sys.stdout.flush()
                click.echo(_trace(execution.cause_of(exc)), err=True, nl=False)
                return command.FAILED
    if interrupted.scope.cancelled_caught:
        return command.INTERRUPTED
    if scope.cancelled_caught:
        teller.note(f"ended after {wish.limit_s:g} s, as --for says")
    elif result is not None or script.procedure.is_async is not True or out.asked:
        out.value(result)
    return command.FINE


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@contextlib.contextmanager
def _given_up(limit_s: float | None) -> Iterator[None]:
    """A script that stops the event loop cannot be ended; then this process ends."""
    if limit_s is None:
        yield
        return

    def end() -> None:
        print("moat: the script does not heed its end; ended by force", file=sys.stderr, flush=True)
        os._exit(command.FAILED)

    timer = threading.Timer(limit_s + GIVE_UP_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Interrupt:
    """^C: the first ends the script as its runner would, the second ends the process."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_run():
            self._soon = trio.lowlevel.current_trio_token().run_sync_soon
        else:
            self._soon = asyncio.get_running_loop().call_soon_threadsafe
        self._pressed = False

    def __call__(self, *_: object) -> None:
        if self._pressed:
            os._exit(command.INTERRUPTED)
        self._pressed = True
        self._soon(self.scope.cancel)


@contextlib.contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt  # here no signal comes
        return
    former = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, former)


class _Teller(logging.Handler):
    """Prints what happens, and what the script logs, a line each."""

    def __init__(self, wish: Wish, *, debug: bool) -> None:
        super().__init__(logging.DEBUG if debug else logging.INFO)
        self._wish = wish
        self._writes = 0

    def emit(self, record: logging.LogRecord) -> None:
        """A log record of the script."""
        sys.stdout.flush()
        click.echo(f"{record.levelname.lower():<8}{self.format(record)}", err=True)

    def tell(self, happening: happenings.Happening) -> None:
        from moat_kv_runner.trying import happenings

        if isinstance(happening, happenings.Wrote | happenings.Deleted | happenings.Sent):
            self._writes += 1
        if self._wish.quiet:
            return
        word, place, value = happenings.words(happening)
        shown = "" if value is None and word != "set" else "  " + plain.inline(value)
        if len(shown) > _SHOWN:
            shown = shown[: _SHOWN - 1] + "…"
        # What the script has printed before comes first.
        sys.stdout.flush()
        click.echo(f"{word:<8}{place}{shown}", err=True)

    def note(self, text: str) -> None:
        if not self._wish.quiet:
            click.echo(f"moat: {text}", err=True)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tell what is logged; say at the end, however it came, what became of the writes."""
        logger = logging.getLogger("moat_kv.job")
        was = logger.propagate, logger.level
        if not self._wish.quiet:
            logger.addHandler(self)
            logger.setLevel(self.level)
            logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.propagate = was[0]
            logger.setLevel(was[1])
            sys.stdout.flush()
            if self._writes:
                written = output.counted(self._writes, "write")
                kept = "let through to the server" if self._wish.real else "not stored"
                self.note(f"{written}, {kept}")
