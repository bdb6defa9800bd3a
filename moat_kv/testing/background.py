"""Processes that outlive who starts them, known by their id and by when they began.

For `cluster`: what one command starts, another one freezes, kills or ends. A process's id may have
gone to somebody else by then, so it counts only together with the time at which the process began;
nothing is ever sent to another one. Each has a session of its own, so that Ctrl-C does not reach
it. Needs Linux's /proc, or `ps`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

#: What a process does: `dead` too if it has ended and nobody has asked for its exit code yet.
State = Literal["up", "frozen", "dead"]

#: The child's file descriptor to write to when it is ready.
READY_FD = 3
#: What was killed has gone by then, in seconds: it may have to wait for a disk before.
KILLED_S = 30.0
_LOOK_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process that was started here."""

    pid: int
    began: str
    """When, in whatever form the system tells it; two processes of one id differ in it."""


class NotStarted(RuntimeError):
    """A process ended, or was not ready in time."""


def start(
    words: Sequence[str],
    *,
    log: pathlib.Path,
    environment: Mapping[str, str] | None = None,
    ready: int | None = None,
) -> Process:
    """Start a program, whose output goes to the end of `log`.

    `ready`: the file descriptor that it gets as number `READY_FD`. Raises OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    if ready is not None:
        actions.append((os.POSIX_SPAWN_DUP2, ready, READY_FD))
    pid = os.posix_spawn(
        words[0],
        list(words),
        dict(os.environ if environment is None else environment),
        file_actions=actions,
        setsid=True,
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
    )
    began = _look(pid)[1]
    return Process(pid=pid, began=began)


class Starting:
    """A process that says on a pipe when it is ready: start all, then wait for each."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        log: pathlib.Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        self._out, into = os.pipe()
        try:
            # So that it cannot be READY_FD itself, which would then be closed in the child.
            into = _moved_up(into)
            self.process = start(words, log=log, environment=environment, ready=into)
        except BaseException:
            os.close(self._out)
            raise
        finally:
            os.close(into)

    def wait(self, limit_s: float) -> str:
        """What it said, up to the line's end. Raises NotStarted."""
        text = b""
        give_up_at = time.monotonic() + limit_s
        while b"\n" not in text:
            left_s = max(0.0, give_up_at - time.monotonic())
            readable, _, _ = select.select([self._out], [], [], left_s)
            if not readable:
                raise NotStarted(f"not ready within {limit_s:g} s: {end_of(self._log)}")
            chunk = os.read(self._out, 4096)
            if not chunk:
                raise NotStarted(end_of(self._log) or "it ended without a word")
            text += chunk
        return text.partition(b"\n")[0].decode()

    def close(self) -> None:
        os.close(self._out)


def _moved_up(fd: int) -> int:
    if fd != READY_FD:
        return fd
    moved = os.dup(fd)
    os.close(fd)
    return moved


def state(process: Process) -> State:
    """What it does now."""
    word, began = _look(process.pid)
    if began != process.began:
        return "dead"
    if word in ("Z", "X"):
        _reap(process.pid)
        return "dead"
    return "frozen" if word == "T" else "up"


def send(process: Process, number: signal.Signals) -> bool:
    """Send a signal to it, and never to another process; whether it was there."""
    with contextlib.ExitStack() as stack:
        handle = None
        if sys.platform == "linux":
            # While this is open its id means no other process.
            try:
                handle = os.pidfd_open(process.pid)
            except ProcessLookupError:
                return False
            stack.callback(os.close, handle)
        if state(process) == "dead":
            return False
        try:
            if sys.platform == "linux" and handle is not None:
                signal.pidfd_send_signal(handle, number)
            else:
                os.kill(process.pid, number)
        except ProcessLookupError:
            return False
    return True


def end(processes: Sequence[Process], *, limit_s: float) -> None:
    """Ask all to end, and kill those that live on after this time. Returns when all are gone."""
    for each in processes:
        send(each, signal.SIGTERM)
        send(each, signal.SIGCONT)
    if not wait_gone(processes, limit_s):
        kill(processes)


def kill(processes: Sequence[Process]) -> None:
    """End all at once, as a crash would. Returns when they are gone."""
    for each in processes:
        send(each, signal.SIGKILL)
    if not wait_gone(processes, KILLED_S):
        left = [each.pid for each in processes if state(each) != "dead"]
        raise NotStarted(f"these do not end although they were killed: {left}")


def wait_gone(processes: Sequence[Process], limit_s: float) -> bool:
    """Whether all have ended within this time."""
    give_up_at = time.monotonic() + limit_s
    while any(state(each) != "dead" for each in processes):
        if time.monotonic() > give_up_at:
            return False
        time.sleep(_LOOK_S)
    return True


def end_of(log: pathlib.Path, lines: int = 3) -> str:
    """The last lines of a log; empty if there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _look(pid: int) -> tuple[str, str]:
    """The letter of its state, and when it began; empty if there is no such process."""
    if sys.platform == "linux":
        try:
            text = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return "", ""
        fields = text.rpartition(")")[2].split()  # a program's name may have blanks and parentheses
        return fields[0].upper(), fields[19]
    words = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    found = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    letter, _, began = found.partition(" ")
    return letter[:1].upper(), began.strip()


def _reap(pid: int) -> None:
    """Ask for the exit code of a child of this very process, without which it stays listed."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
