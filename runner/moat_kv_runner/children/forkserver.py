"""The process that has everything imported, and forks a keeper with a child whenever it is asked.

Started by `nursery` as a program of its own, once for a runner's process: forking takes a few
milliseconds, starting Python with all that a run needs half a second. It imports no stored module
and runs no user code, has no thread and no event loop. It never answers: the keeper tells the
runner what became of a child, or its closed socket does. It ends when its runner has, after the
last keeper. It is a subreaper too: whatever a child has left behind whose keeper was killed is
killed here.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from moat_kv_runner.children import cgroups, child, keeper, lease, limits, processes, wire

#: The descriptors that come with a request: the child's ends of control, imports, output and
#: errors, the keeper's end of its socket, the page with the lease.
FDS = 6
#: A request's length, without the descriptors.
REQUEST_BYTES = 128 * 1024

_PRELOADED = (
    "moat_kv_runner.children.inside",
    "anyio._backends._asyncio",
    "anyio._core._signals",
    "asyncio",
)
_FOR_TRIO = ("trio", "anyio._backends._trio")


class ForkServer:
    """See above."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._keepers: set[int] = set()
        self._cgroups = cgroups.usable_folder()
        self._null = os.open(os.devnull, os.O_RDWR)

    def run(self) -> None:
        wakeup = wakeup_pipe()
        signal.signal(signal.SIGCHLD, _nothing)
        has_runner = True
        while has_runner or self._keepers:
            waiting: list[Any] = [wakeup, self._requests] if has_runner else [wakeup]
            ready, _, _ = select.select(waiting, [], [])
            if wakeup in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wakeup, 4096)
            self._reap()
            if self._requests in ready:
                has_runner = self._serve()

    def _serve(self) -> bool:
        """One request; False if the runner is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._requests, REQUEST_BYTES, FDS)
        except OSError:
            return False
        if not data:
            return False
        try:
            if len(fds) == FDS:
                self._fork(wire.unpacked(data).fields, fds)
        except Exception:  # the runner sees that there is no keeper; others are to be served
            traceback.print_exc()
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _fork(self, request: dict[str, Any], fds: list[int]) -> None:
        if request["backend"] == "trio":
            preload(_FOR_TRIO)
        pid = os.fork()
        if pid:
            self._keepers.add(pid)
            return
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            self._requests.close()
            self._keep(request, fds)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _keep(self, request: dict[str, Any], fds: list[int]) -> None:
        """In the keeper, to its end."""
        *for_child, keeper_fd, lease_fd = fds
        processes.set_name("moat-keeper")
        processes.become_subreaper()
        wakeup = wakeup_pipe()
        allowed = limits.of(request["limits"])
        runner = socket.socket(fileno=keeper_fd)
        runner.setblocking(False)
        granted = lease.LeaseView(lease_fd)
        group = None
        if self._cgroups is not None:
            with contextlib.suppress(OSError):
                group = cgroups.Cgroup.make(self._cgroups, allowed)
        notice_read, notice_write = _pipe()
        held_read, held_write = os.pipe()
        # What it is told before it is ready must not be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        pid = os.fork()
        if not pid:
            _live(request, for_child, notice=notice_write, held=held_read, null=self._null)
        keeper.come_first()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for fd in (*for_child, notice_write, held_read):
            os.close(fd)
        with contextlib.suppress(OSError):  # without a runner the child is ended at once
            runner.send(wire.packet("pid", pid=pid))
        if group is not None:
            # Beside the child's start.
            with contextlib.suppress(OSError):
                group.add(pid)
        os.close(held_write)
        keeper.Keeper(
            runner,
            pid,
            notice=notice_read,
            wakeup=wakeup,
            granted=granted,
            allowed=allowed,
            cgroup=group,
        ).run()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self._keepers:
                self._keepers.discard(pid)
                if status:
                    self._kill_strays(pid)

    def _kill_strays(self, keeper_pid: int) -> None:
        """A keeper was killed; what it held is ours now: all children that are no keepers."""
        if self._cgroups is not None:
            for folder in self._cgroups.glob(f"{cgroups.PREFIX}{keeper_pid}-*"):
                cgroups.Cgroup(folder).kill()
        give_up_at = time.monotonic() + keeper.STUCK_S
        while time.monotonic() < give_up_at:
            strays = [pid for pid in processes.children(os.getpid()) if pid not in self._keepers]
            if not strays:
                break
            for pid in strays:
                processes.send([pid, *processes.descendants(pid)], signal.SIGKILL)
            for pid in strays:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(keeper.ROUND_S)
        if self._cgroups is not None:
            for folder in self._cgroups.glob(f"{cgroups.PREFIX}{keeper_pid}-*"):
                cgroups.Cgroup(folder).remove()


def _live(
    request: dict[str, Any],
    fds: list[int],
    *,
    notice: int,
    held: int,
    null: int,
) -> NoReturn:
    """In the child."""
    status = 70
    try:
        child.become(request, fds, notice=notice, held=held, null=null)
        status = child.live(request)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def preload(names: tuple[str, ...]) -> None:
    """Have these in memory before the next fork, and out of the collector's sight."""
    for name in names:
        if name not in sys.modules:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def wakeup_pipe() -> int:
    """Signals that are handled are told on this descriptor."""
    read, write = _pipe()
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _nothing)
    return read


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    return read, write


def _nothing(*_: object) -> None:
    """A handler, so that the signal wakes whoever waits."""


def main() -> None:
    """`python -m moat_kv_runner.children.forkserver FD`."""
    # All of these end with the runner, and not before it: it has jobs to end in good order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    processes.set_name("moat-forkserver")
    processes.become_subreaper()
    requests = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()
    preload(_PRELOADED)
    ForkServer(requests).run()


if __name__ == "__main__":
    main()
