"""Free ports of loopback, for processes that are told their port before they listen there.

Between the choice and the listening somebody else may take a port, and while a process is away that
is to come back there. So these are not of those that the system gives to connections by itself,
and a process that chooses, such as a worker of a run of tests, has some for itself as long as it
lives: by locks on parts of a file that is never written. Used by `nats` and `cluster_plan`.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pathlib
import random
import socket
import tempfile
import threading
from collections.abc import Iterator

_LOOPBACK = "127.0.0.1"
#: Below 32,768, above which Linux takes those of connections; without those that moat-kv uses.
_PORTS = [port for port in range(20_000, 32_000) if not 27_500 <= port < 27_700]
#: A process has so many for itself, and takes them in turn: that of a process which is away for a
#: moment comes late.
OWN = 300

_mutex = threading.Lock()
_own: Iterator[int] | None = None


def free(count: int) -> list[int]:
    """So many that are free at this moment. From any thread."""
    global _own
    with _mutex:
        if _own is None:
            _own = itertools.cycle(_lock_some())
        found: list[int] = []
        for port in itertools.chain(
            itertools.islice(_own, OWN), random.sample(_PORTS, len(_PORTS))
        ):
            if port not in found and is_free(port):
                found.append(port)
            if len(found) == count:
                return found
    raise OSError("no port of loopback is free")


def free_port() -> int:
    """One of them."""
    return free(1)[0]


def is_free(port: int) -> bool:
    """Whether one can listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return False
        return True


def _lock_some() -> list[int]:
    """`OWN` ports that no other process has locked; any, if that cannot be."""
    parts = [_PORTS[start : start + OWN] for start in range(0, len(_PORTS), OWN)]
    order = random.sample(range(len(parts)), len(parts))
    name = pathlib.Path(tempfile.gettempdir()) / f"moat-kv-ports.{os.getuid()}"
    with contextlib.suppress(OSError):
        # Never closed: the locks go with the process.
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        for part in order:
            with contextlib.suppress(BlockingIOError, PermissionError):
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, part)
                return parts[part]
    return parts[order[0]]
