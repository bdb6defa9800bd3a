"""Only one server may open a log: the lock beside its file, with the owner's process id in it.

Taken by `engine.sqlite` before anything else. SQLite's own exclusive lock would do for safety, but
it cannot say who holds it. The kernel gives the lock back when its owner dies in whatever way, so
a lock file that is merely left over holds up nobody. It is never removed: who removed it could
remove the one that another server has just locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib

from moat_kv import errors
from moat_kv.engine import file_errors


class FileLock:
    """The lock of one log file, `FILE.lock`."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file
        self._place = file.with_name(file.name + ".lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises StorageBusy, which names the owner; StorageFailed."""
        try:
            descriptor = os.open(self._place, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            reason = file_errors.reason_of(exc, self._file)
            raise errors.StorageFailed(str(self._file), reason) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if not isinstance(exc, BlockingIOError):
                reason = file_errors.reason_of(exc, self._place)
                raise errors.StorageFailed(str(self._place), reason) from exc
            who = f"process {owner}" if owner.isdigit() else "another process"
            raise errors.StorageBusy(str(self._file), who) from None
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only the name is missing
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Give the lock back; without effect if it is not held."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None
