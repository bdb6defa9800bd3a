"""Room that a log keeps back on its disk, so that a full one can be emptied again.

Used by `engine.sqlite_store` in the worker thread. To delete takes room, too: for the deletion, for
what compaction writes, and for moving into the file what the write-ahead log holds. Where the log
itself has filled the disk nobody else could make any. So a file without content lies beside it,
`FILE.reserve`; it is removed when there is no other room left, and made again when there is enough.
"""

from __future__ import annotations

import contextlib
import os
import pathlib

#: A write-ahead log is emptied at 4 MB; one commit above that has some 5 MB at most.
SIZE_BYTES = 16 << 20
#: On a small disk the reserve is no larger than this part of it.
LARGEST_PART = 4
#: A log that begins to be written takes a reserve only if so many times its size is free.
SPARE = 2


class Reserve:
    """The reserve of one log file. Nothing here raises: there is one, or there is none."""

    def __init__(self, file: pathlib.Path) -> None:
        self._folder = file.parent
        self._place = file.with_name(file.name + ".reserve")
        self.held = False
        #: How large it is, or would be; 0: not known yet.
        self.size_bytes = 0

    def adopt(self) -> None:
        """Take what an earlier process left behind."""
        with contextlib.suppress(OSError):
            self.held = self._place.stat().st_blocks * 512 >= self._wanted()[0]

    def take(self, *, spare: int = 1) -> bool:
        """Have one, if `spare` times its size is free; whether there is one now."""
        if self.held:
            return True
        try:
            size, free = self._wanted()
            if free < spare * size:
                return False
            descriptor = os.open(self._place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                _allocate(descriptor, size)
            finally:
                os.close(descriptor)
            self.held = True
        except OSError:
            self._remove()
        return self.held

    def has_beside(self, size_bytes: int) -> bool:
        """Whether so much is free now."""
        try:
            return self._wanted()[1] >= size_bytes
        except OSError:
            return False

    def release(self) -> bool:
        """Give the room back to the disk; whether there was any."""
        was_held = self.held
        if was_held:
            self._remove()
        return was_held

    def _remove(self) -> None:
        self.held = False
        with contextlib.suppress(OSError):
            self._place.unlink(missing_ok=True)

    def _wanted(self) -> tuple[int, int]:
        """How large it should be, and how much is free. Raises OSError."""
        disk = os.statvfs(self._folder)
        self.size_bytes = min(SIZE_BYTES, disk.f_blocks * disk.f_frsize // LARGEST_PART)
        return self.size_bytes, disk.f_bavail * disk.f_frsize


def _allocate(descriptor: int, size_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size_bytes)
        return
    for _ in range(0, size_bytes, 1 << 20):
        os.write(descriptor, bytes(1 << 20))
