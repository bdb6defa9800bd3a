"""What this machine cannot hold of children; said once, when a runner starts.

`serving` logs it. Nothing here changes anything but for a control group that is made and removed.
"""

from __future__ import annotations

import ctypes
import logging
import resource

from moat_kv_runner.children import cgroups, processes

logger = logging.getLogger(__name__)

_PR_GET_CHILD_SUBREAPER = 37
#: Each child costs its runner four; a runner asks for room for its jobs.
FILES = 16 * 1024

_told: set[str] = set()


def gaps() -> list[tuple[int, str]]:
    """Sentences for people, each with the level at which to log it."""
    found = []
    if not _can_reap():
        text = "what a job's processes start in sessions of their own may outlive the job"
        found.append((logging.WARNING, f"{text}: this system has no subreapers"))
    if not processes.can_be_listed():
        text = "the number of a job's processes is not limited, and those that left its group"
        found.append((logging.WARNING, f"{text} are not found: no /proc/PID/task/TID/children"))
    folder = cgroups.usable_folder()
    if folder is None:
        text = "a job that kills its keeper on purpose can leave processes behind"
        found.append((logging.INFO, f"{text}: no control group can be made here"))
    if folder is None or not cgroups.limits_memory(folder):
        text = "memory is limited for each process of a job, not for all of them together"
        found.append((logging.INFO, f"{text}: no control group here can do that"))
    return found


def tell_gaps() -> None:
    """Log each gap, once in this process."""
    for level, text in gaps():
        if text not in _told:
            _told.add(text)
            logger.log(level, "%s", text)


def raise_file_limit() -> None:
    """Let this process open as many files as its jobs' children need, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _can_reap() -> bool:
    try:
        call = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return False
    value = ctypes.c_int()
    return bool(call(_PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0) == 0)
