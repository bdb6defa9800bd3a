"""Until when children may go on, in a page of memory that a runner shares with their keepers.

The runner writes into it how long its session is good for, whenever it has heard from the server; a
keeper ends its child when that time has passed. So a runner that is frozen past its session, or
stuck, has no children any more when it goes on, whatever it does first. Time is told by a clock
that counts while the machine sleeps.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time

_DEADLINE = struct.Struct("=d")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds on the clock of deadlines."""
    return time.clock_gettime(_CLOCK)


class LeasePage:
    """The runner's side; good for nothing until it is renewed."""

    def __init__(self) -> None:
        #: Handed to keepers.
        self.fd = _new_file()
        self._page = mmap.mmap(self.fd, mmap.PAGESIZE)

    def renew(self, left_s: float) -> None:
        """Good for so many seconds from now on; 0 or less: over."""
        _DEADLINE.pack_into(self._page, 0, now() + left_s if left_s > 0 else 0.0)

    def close(self) -> None:
        self._page.close()
        os.close(self.fd)


class LeaseView:
    """A keeper's side."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ)

    def left_s(self) -> float:
        """For how many seconds it is still good; 0 or less: it is over."""
        deadline: float = _DEADLINE.unpack_from(self._page, 0)[0]
        return deadline - now()


def _new_file() -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("moat-kv-lease")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, mmap.PAGESIZE)
    return fd
