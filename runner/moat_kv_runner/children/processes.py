"""The processes of a job, seen from its keeper: who they are, and that none gets away.

A keeper is a subreaper: whoever loses its parent below it becomes its own child, however often it
forked and whatever session it opened. Linux only; elsewhere only the process group is held.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import pathlib
import signal

_PART_BYTES = 16 * 1024
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Adopt all descendants that lose their parents; False if that cannot be had here."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """What `ps` and `top` call this process, in 15 characters."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def _prctl(option: int, argument: int | bytes) -> bool:
    try:
        call = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return False
    given = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    done: int = call(option, given, 0, 0, 0)
    return done == 0


def children(pid: int) -> list[int]:
    """Of all threads of a process; none if it is gone."""
    found = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  # this is done often
    except OSError:
        return []
    for thread in threads:
        found += numbers_in(f"/proc/{pid}/task/{thread}/children")
    return found


def numbers_in(place: str) -> list[int]:
    """Those in a file of the system; none if it is gone. Quick, as every keeper does it often."""
    found = b""
    try:
        fd = os.open(place, os.O_RDONLY)
    except OSError:
        return []
    try:
        while part := os.read(fd, _PART_BYTES):
            found += part
    except OSError:
        return []
    finally:
        os.close(fd)
    return [int(each) for each in found.split()]


def descendants(pid: int, *, at_most: float = math.inf) -> list[int]:
    """All processes below one, those above before those below; changes while it is read.

    `at_most`: so many will do. Those that fork faster than they are read would never come to an
    end.
    """
    found: list[int] = []
    waiting = children(pid)
    while waiting and len(found) < at_most:
        each = waiting.pop()
        found.append(each)
        waiting += children(each)
    return found


def can_be_listed() -> bool:
    """Whether this system tells a process's children."""
    return pathlib.Path(f"/proc/self/task/{os.getpid()}/children").exists()


def send(pids: list[int], number: int) -> None:
    """A signal to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def send_group(group: int, number: int) -> bool:
    """To a process group, at once: nobody in it forks out of this. False if there is none."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
