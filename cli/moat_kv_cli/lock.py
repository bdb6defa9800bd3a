"""`moat kv lock PATH -- COMMAND`: a command that runs only while this process has the lock."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import asyncclick as click

from moat_kv.coord import aio
from moat_kv.path import Path
from moat_kv_cli import command, verbs

#: What the command finds in its environment.
FENCE_VARIABLE, ENTRY_VARIABLE = "MOAT_KV_LOCK_FENCE", "MOAT_KV_LOCK_ENTRY"
#: How long a command has to end by itself when the lock is lost, in seconds; then it is killed.
END_S = 5.0
#: As shells tell: it cannot be run, there is no such command, it was ended by a signal (plus that).
CANNOT_RUN, NO_COMMAND, BY_SIGNAL = 126, 127, 128


@click.command(
    cls=command.Command,
    example="moat kv lock backup -- ./backup.sh\n"
    "moat kv lock --wait 0 heating.pump -- moat kv data pump set -e : true",
)
@click.option(
    "--ttl",
    "ttl_s",
    type=command.FiniteRange(0, min_open=True),
    metavar="SECONDS",
    help="How long this machine may be silent before the lock passes on. [the server's]",
)
@click.option(
    "--wait",
    "wait_s",
    type=command.FiniteRange(0),
    metavar="SECONDS",
    help="How long to wait for the lock; 0: not at all. [as long as it takes]",
)
@click.option("--shared", is_flag=True, help="Together with other shared ones.")
@click.argument("path", type=verbs.LOCK)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
@command.pass_invocation
async def lock(
    invocation: command.Invocation,
    /,
    ttl_s: float | None,
    wait_s: float | None,
    shared: bool,
    path: Path,
    words: tuple[str, ...],
) -> int:
    """Run COMMAND while holding the lock at PATH, below the place of locks.

    Its exit code is passed on. 4: the lock is somebody else's, or was lost; then COMMAND was ended.
    COMMAND finds the lock's fence in MOAT_KV_LOCK_FENCE, its entry in MOAT_KV_LOCK_ENTRY.
    """
    if not words:
        raise command.fail("what is to be run? moat kv lock PATH -- COMMAND")
    limit_s = float("inf") if wait_s is None else wait_s
    async with (
        invocation.staying_client() as client,
        aio.Process(client, ttl_s=ttl_s) as process,
    ):
        held = process.lock(path, shared=shared, timeout_s=limit_s)
        async with held.guarded():
            entry, fence = held.guard
            told = {FENCE_VARIABLE: str(fence), ENTRY_VARIABLE: str(entry)}
            return await _run(words, os.environ | told)
    raise AssertionError("a lock that is lost raises")


async def _run(words: Sequence[str], environment: dict[str, str]) -> int:
    """Run it to its end, with the signals that this process gets; its exit code."""
    try:
        with anyio.open_signal_receiver(*_PASSED_ON) as signals:
            async with _started(words, environment) as child, anyio.create_task_group() as tasks:
                tasks.start_soon(_pass_on, signals, child)
                code = await child.wait()
                tasks.cancel_scope.cancel()
    except FileNotFoundError as exc:
        raise command.Refused(f"{words[0]}: no such command", NO_COMMAND) from exc
    except PermissionError as exc:
        raise command.Refused(f"{words[0]}: cannot be run", CANNOT_RUN) from exc
    return code if code >= 0 else BY_SIGNAL - code


_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


async def _pass_on(signals: AsyncIterator[signal.Signals], child: anyio.abc.Process) -> None:
    async for number in signals:
        # A terminal sends Ctrl-C to the command as well.
        if number != signal.SIGINT or not sys.stdin.isatty():
            child.send_signal(number)


@asynccontextmanager
async def _started(
    words: Sequence[str], environment: dict[str, str]
) -> AsyncIterator[anyio.abc.Process]:
    """The command, on this process' own input and output; ended if the block is left early."""
    child = await anyio.open_process(words, stdin=None, stdout=None, stderr=None, env=environment)
    try:
        yield child
    finally:
        with anyio.CancelScope(shield=True):
            if child.returncode is None:
                await _end(child)
            await child.aclose()


async def _end(child: anyio.abc.Process) -> None:
    child.terminate()
    with anyio.move_on_after(END_S):
        await child.wait()
        return
    child.kill()
    await child.wait()
