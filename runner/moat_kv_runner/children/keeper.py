"""One child's guardian: a process between the fork server and the child that sees all of it end.

Forked by `forkserver` for each child, which it forks in turn. It outlives the runner: when its
socket to the runner closes, or the runner's lease is over, it kills the child and whatever that has
started. As a subreaper it is the parent of all that the child left behind, so what has forked twice
and opened sessions of its own is found, counted and ended like the rest. It runs no user code and
no event loop.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import time
from typing import Any

from moat_kv_runner.children import cgroups, child, lease, limits, processes, wire

#: How often a child's processes are counted while nothing is known to happen, in seconds; a child
#: says when it starts some, unless it does so behind Python's back.
COUNT_S = 4.0
#: The same while there is but the child.
ALONE_S = 20.0
#: How often while their number grows.
GROWING_S = 0.005
#: So many processes are looked for, and killed, at a time.
AT_ONCE = 1000
#: Between two rounds of killing, in seconds.
ROUND_S = 0.01
#: After so long it is said that some do not die; the system holds them.
STUCK_S = 5.0


class Keeper:
    """See above; `run` returns when nothing of the child is left."""

    def __init__(
        self,
        runner: socket.socket,
        pid: int,
        *,
        notice: int,
        wakeup: int,
        granted: lease.LeaseView,
        allowed: limits.Limits,
        cgroup: cgroups.Cgroup | None,
    ) -> None:
        self._runner: socket.socket | None = runner
        self._child = pid
        self._notice = notice
        self._wakeup = wakeup
        self._lease = granted
        self._allowed = allowed
        self._cgroup = cgroup
        # What `waitpid` said of the child itself; None while it lives.
        self._status: int | None = None
        # Why it is being killed; None while it is not.
        self._killing: str | None = None
        self._killing_since = 0.0
        self._has_told_stuck = False
        # When a child that was told to end is killed.
        self._kill_at: float | None = None
        self._count_at = time.monotonic() + COUNT_S
        self._count_wait_s = COUNT_S
        self._most = 0
        self._left_behind = 0

    def run(self) -> None:
        poll = select.poll()
        for fd in (self._notice, self._wakeup):
            poll.register(fd, select.POLLIN)
        if self._runner is not None:
            poll.register(self._runner, select.POLLIN)
        while self._reap():
            wait_s = self._look()
            for fd, _ in poll.poll(max(0, wait_s * 1000)):
                if self._runner is not None and fd == self._runner.fileno():
                    if not self._obey():
                        poll.unregister(fd)
                        self._runner.close()
                        self._runner = None
                        self._kill("runner")
                elif fd == self._notice:
                    self._heed_notice(poll)
                else:
                    _drain(fd)
        self._tell("ended", **self._facts())
        if self._cgroup is not None:
            self._cgroup.remove()

    # The child ----------------------------------------------------------------------------------

    def _reap(self) -> bool:
        """Take note of whoever has ended; whether anybody is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._child:
                self._status = status
                self._left_behind = len(self._members())
                self._kill("end")

    def _look(self) -> float:
        """Do what is due; for how many seconds nothing more is."""
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill("grace")
        left_s = self._lease.left_s()
        if left_s <= 0:
            self._kill("lease")
        if self._killing is not None:
            return self._kill_round(now)
        if now >= self._count_at:
            self._count(now)
            if self._killing is not None:
                return 0.0
        waits = [left_s, self._count_at - now]
        if self._kill_at is not None:
            waits.append(self._kill_at - now)
        return max(0.0, min(waits))

    def _heed_notice(self, poll: select.poll) -> None:
        """The child starts processes, or would have started too many."""
        told = _drain(self._notice)
        if not told:
            poll.unregister(self._notice)
        elif child.OVER in told:
            self._kill("processes")
        self._count_at = time.monotonic()
        self._count_wait_s = GROWING_S

    def _members(self) -> list[int]:
        found = set(processes.descendants(os.getpid(), at_most=AT_ONCE))
        if self._cgroup is not None:
            found |= self._cgroup.members() - {os.getpid()}
        return list(found)

    def _number(self) -> int:
        """How many processes the job has."""
        # Nothing leaves a group; and one look will do.
        if self._cgroup is not None and (members := self._cgroup.members()):
            return len(members)
        return len(processes.descendants(os.getpid(), at_most=self._allowed.processes + 1))

    def _count(self, now: float) -> None:
        number = self._number()
        if self._allowed.processes and number > self._allowed.processes:
            self._kill("processes")
        is_growing = number > self._most
        self._most = max(self._most, number)
        calm_s = min(self._count_wait_s * 1.5, COUNT_S if number > 1 else ALONE_S)
        self._count_wait_s = GROWING_S if is_growing and number > 1 else calm_s
        self._count_at = now + self._count_wait_s

    def _kill(self, why: str) -> None:
        if self._killing is None:
            self._killing = why
            self._killing_since = time.monotonic()

    def _kill_round(self, now: float) -> float:
        """Until none is left; who was forked meanwhile is found in the next round."""
        if self._cgroup is not None:
            self._cgroup.kill()
        if self._status is None:
            # Before it is reaped its number is nobody else's.
            processes.send_group(self._child, signal.SIGKILL)
        members = self._members()
        processes.send(members, signal.SIGKILL)
        if now - self._killing_since > STUCK_S and not self._has_told_stuck:
            self._has_told_stuck = True
            self._tell("stuck", pids=members)
        return ROUND_S

    # The runner ---------------------------------------------------------------------------------

    def _obey(self) -> bool:
        """Take the runner's orders; False if there is no runner any more."""
        assert self._runner is not None
        try:
            data = self._runner.recv(wire.PACKET_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        order = wire.unpacked(data)
        if order.kind == "stop":
            if order.fields.get("term") and self._status is None:
                self._ask_to_end()
            kill_at = time.monotonic() + float(order.fields["grace_s"])
            self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        return True

    def _ask_to_end(self) -> None:
        # It may not have its group yet.
        if not processes.send_group(self._child, signal.SIGTERM):
            processes.send([self._child], signal.SIGTERM)

    def _tell(self, kind: str, **fields: Any) -> None:
        if self._runner is not None:
            with contextlib.suppress(OSError):
                self._runner.send(wire.packet(kind, **fields))

    def _facts(self) -> dict[str, Any]:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "status": self._status,
            "killed": None if self._killing == "end" else self._killing,
            "left_behind": self._left_behind,
            "cpu_s": used.ru_utime + used.ru_stime,
            "memory_kb": used.ru_maxrss,
        }


def _drain(fd: int) -> bytes:
    """What is there; b"" at the end."""
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b"+"


def come_first() -> None:
    """Be scheduled before whatever a job may start, if this process may be; its children are not.

    It does little, and what it does must be done in the middle of a storm.
    """
    with contextlib.suppress(OSError, AttributeError):
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(1))
        return
    with contextlib.suppress(OSError):
        os.nice(-20)
