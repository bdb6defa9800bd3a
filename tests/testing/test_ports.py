"""Free ports: each once, each process its own, and none that the system gives away by itself."""

from __future__ import annotations

import socket
import subprocess
import sys

from moat_kv.testing import ports

CHILD = """
import sys
from moat_kv.testing import ports
print(*ports.free(50), flush=True)
sys.stdin.read()
"""


def test_processes_that_choose_at_the_same_time_have_no_port_in_common() -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    found = ports.free(50)
    for child in children:
        assert child.stdout is not None
        found += map(int, child.stdout.readline().split())
    for child in children:
        child.communicate()
    assert len(found) == len(set(found)) == 200
    assert all(20_000 <= port < 32_000 for port in found)


def test_what_was_given_comes_again_only_much_later() -> None:
    found = [port for _ in range(8) for port in ports.free(20)]
    assert len(set(found)) == len(found)


def test_where_somebody_listens_is_no_free_port() -> None:
    (port,) = ports.free(1)
    with socket.create_server(("127.0.0.1", port)):
        assert not ports.is_free(port)
        assert port not in ports.free(ports.OWN)
    assert ports.is_free(port)
