"""What a forked process does to become a child: nothing of the fork server's is left in it.

Called by `forkserver` right after the fork. Afterwards it has a session and process group of its
own, a clean environment, seven descriptors, its limits, and default signals; then `inside` takes
the call from the runner and runs it.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import functools
import gc
import os
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from moat_kv_runner.children import limits, processes

#: The descriptors beside 0 (nothing), 1 and 2 (output and errors).
CONTROL, BESIDE, NOTICE, HELD = 3, 4, 5, 6
#: What a child knows of its runner's environment.
ENVIRONMENT = ("PATH", "HOME", "LANG", "TZ")

#: Told to the keeper when the job wants more processes than it may have.
OVER = b"!"

#: Events of Python's audit that start a process.
_STARTING = frozenset(
    ("os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen")
)


def become(
    request: Mapping[str, Any], fds: list[int], *, notice: int, held: int, null: int
) -> None:
    """Leave behind what was the fork server's."""
    os.setsid()
    processes.set_name("moat-job")
    control, beside, output, errors = fds
    _place_descriptors([null, output, errors, control, beside, notice, held])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    _set_environment(request["env"])
    sys.argv = ["moat-job"]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _output(1)
    sys.stderr = _output(2)
    faulthandler.enable()
    allowed = limits.of(request["limits"])
    limits.apply(allowed)
    sys.addaudithook(_Gate(os.getppid(), int(allowed.processes)).check)
    gc.enable()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _place_descriptors(wanted: list[int]) -> None:
    """Have these as 0, 1, 2, ... and no other."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in wanted]
    for place, fd in enumerate(high):
        os.dup2(fd, place, inheritable=place <= 2)
    os.closerange(len(wanted), max(os.sysconf("SC_OPEN_MAX"), 4096))


def _set_environment(env: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    home = env.get("HOME", "")
    try:
        os.chdir(home if home and pathlib.Path(home).is_dir() else "/")
    except OSError:
        os.chdir("/")


def _output(fd: int) -> Any:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


class _Gate:
    """Looks at each start of a process before it happens.

    The keeper counts too, and is told to count soon; but a loop that forks would be far ahead of
    it by the time that it looks.
    """

    def __init__(self, keeper: int, most: int) -> None:
        self._keeper = keeper
        self._most = most

    def check(self, event: str, _arguments: object) -> None:
        if event not in _STARTING:
            return
        seen = processes.descendants(self._keeper, at_most=self._most + 1)
        is_over = 0 < self._most <= len(seen)
        with contextlib.suppress(OSError):
            os.write(NOTICE, OVER if is_over else b"+")
        if is_over:
            raise BlockingIOError(errno.EAGAIN, f"the job has {self._most} processes, its limit")


@functools.cache
def wait_until_held() -> None:
    """Until the keeper holds all that this process may start, which takes it some 10 ms.

    To be called before any code of a user's runs: what that forks before is never in the child's
    control group. Returns at once from then on, whatever the script has made of its descriptors.
    """
    os.read(HELD, 1)  # nothing is sent: its other end is closed
    os.close(HELD)


def live(request: Mapping[str, Any]) -> int:
    """Run what the runner asks for; the process's exit code."""
    from moat_kv_runner.children import inside

    control = socket.socket(fileno=CONTROL)
    beside = socket.socket(fileno=BESIDE)
    return inside.live(control, beside, backend=request["backend"])
