"""The runner's way to its fork server: started when the first child is wanted, and kept.

One for a process, whatever loops and runners it has: asking is one packet, and answers come from
each child's keeper.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import anyio

from moat_kv_runner.children import child, wire

#: How long the fork server may take at the end, in seconds.
_END_S = 2.0


class Nursery:
    """See above."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to have a fork server, if there is none; it is ready when it is."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "moat_kv_runner.children.forkserver", _text(theirs)],
                env=_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.setblocking(False)
        self._sock = ours

    async def spawn(self, request: dict[str, Any], fds: list[int]) -> None:
        """Have a child started. The descriptors stay the caller's.

        Raises OSError if there is no fork server to be had.
        """
        packet = wire.packet("spawn", **request)
        for is_last in (False, True):
            self.start()
            sock = self._sock
            assert sock is not None
            try:
                while True:
                    try:
                        socket.send_fds(sock, [packet], fds)
                    except BlockingIOError:
                        await anyio.wait_writable(sock)
                    else:
                        return
            except OSError:
                # It was killed; there is another one the next time.
                if is_last:
                    raise
                self.close()

    def close(self) -> None:
        """Leave it; it ends when its last child has."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
            self._process = None


def child_environment(env: dict[str, str]) -> dict[str, str]:
    """What a child finds: of its runner's only the few that it needs, and the job's own."""
    own = {name: os.environ[name] for name in child.ENVIRONMENT if name in os.environ}
    return own | env


def _environment() -> dict[str, str]:
    """The fork server finds the same packages as this process."""
    paths = [each for each in sys.path if each and pathlib.Path(each).exists()]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _text(sock: socket.socket) -> str:
    return str(sock.fileno())


#: This process's own.
NURSERY = Nursery()
atexit.register(NURSERY.close)
