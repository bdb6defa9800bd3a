"""A runner and servers as processes, on a real nats-server: the runner's server is killed."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator

import pytest

from moat_kv.testing import nats
from tests.cli import processes
from tests.cli.processes import moat, server, staying

pytestmark = pytest.mark.timeout(180)  # many processes, one after the other

BEAT = """\
await _client.set(_P("starts") / _self.fence, _self.node)
timer = await _self.timer(0.1)
async for msg in _info:
    if isinstance(msg, _cls.TimerMsg):
        await _self.set(_P("beat"), await _self.get(_P("count")))
        await timer.run(0.1)
"""


@pytest.fixture
def node() -> Iterator[nats.Node]:
    with nats.server() as node:
        yield node


def becomes(place: pathlib.Path, path: str, value: str) -> None:
    """Wait until an entry has that value."""
    deadline = time.monotonic() + processes.PATIENCE_S
    while (shown := moat(place, "data", path)).stdout != value:
        assert time.monotonic() < deadline, (shown.stdout, shown.stderr)
        time.sleep(processes.LOOK_S)


def prints(place: pathlib.Path, *words: str, has: str) -> None:
    """Wait until a command prints that among other things."""
    deadline = time.monotonic() + processes.PATIENCE_S
    while has not in (shown := moat(place, *words)).stdout:
        assert time.monotonic() < deadline, (shown.stdout, shown.stderr)
        time.sleep(processes.LOOK_S)


def test_jobs_go_on_when_the_server_of_their_runner_is_killed(
    tmp_path: pathlib.Path, node: nats.Node
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for place in (first, second):
        place.mkdir()
    engine = ("--engine", f"nats://{node.address}/house")
    both = f"unix://{first}/s unix://{second}/s"
    with (
        server(first, *engine) as (dying, _),
        server(second, *engine, name="n2"),
    ):
        assert moat(second, "code", "beat", "set", "-s", "-", stdin=BEAT).stderr == ""
        assert moat(second, "data", "count", "set", "-e", ":", "1").stderr == ""
        assert moat(second, "run", "at", "j", "set", "-c", "beat", "-t", "0").stderr == ""
        with staying(first, "run", "all", "--name", "pi", MOAT_KV_URL=both) as (_, line):
            assert line.startswith("runner pi is ready")
            becomes(second, "beat", "1\n")
            starts = moat(second, "data", "starts", "list").stdout
            dying.kill()
            assert moat(second, "data", "count", "set", "-e", ":", "2").stderr == ""
            becomes(second, "beat", "2\n")
            # The name is the runner's still, and its claim is the one that it had.
            assert moat(second, "data", "starts", "list").stdout == starts
            prints(second, "run", "info", has="pi")
            with server(first, *engine):
                # (In touch or not: then it is kept, and brought in later.)
                assert moat(first, "data", "count", "set", "-e", ":", "3").returncode == 0
                becomes(second, "beat", "3\n")
                becomes(first, "beat", "3\n")
                assert moat(first, "data", "starts", "list").stdout == starts
