"""Debian's owserver as a peer: started on a free port, ended hard.

It does not stop on SIGTERM while a client is connected, so it is killed.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from moat_kv.testing import ports

#: One of each family that the simulated bus has, with the serial numbers that owserver gives them.
FAMILIES = "10,28,05,3A,29,26"


def need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def owserver(*simulated: str, port: int | None = None) -> Iterator[int]:
    """An owserver with simulated devices (`--tester=...`, `--mock=...`); gives its port."""
    program = need("owserver")
    port = port or ports.free_port()
    command = [program, "--foreground", "-p", f"127.0.0.1:{port}", *simulated]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 30
        while not listens(port):
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            assert time.monotonic() < end, f"{command} does not listen"
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()
