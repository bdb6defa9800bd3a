"""Who changes a cluster in a box: one at a time, of whatever processes.

Used by `cluster`. The lock lies in the cluster's folder, and goes with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from moat_kv.testing import cluster_plan

FILE_NAME = "lock"


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Nobody else changes it meanwhile; if there is no cluster afterwards, the folder is removed.

    Raises FileNotFoundError, NotADirectoryError.
    """
    lock = os.open(folder / FILE_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
        if not (folder / cluster_plan.FILE_NAME).exists():
            (folder / FILE_NAME).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else has something in it
                folder.rmdir()
