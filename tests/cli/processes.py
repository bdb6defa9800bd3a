"""The command as processes of their own: what tests of signals and of start-up need."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli import forking

ROOT = pathlib.Path(__file__).parents[2]
MOAT = [sys.executable, "-m", "moat_kv_cli", "kv"]

#: A process that is not done by then hangs, in seconds.
PATIENCE_S = 30
#: What is waited for is looked at that often; each look is a process, and they need theirs, too.
LOOK_S = 0.1


def environment(tmp_path: pathlib.Path, **more: str) -> dict[str, str]:
    """Only the test's own settings; the server's socket is `s` in its folder."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "runner", ROOT / "cli")))
    return {
        **os.environ,
        "PYTHONPATH": paths,
        "XDG_CONFIG_HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "MOAT_KV_URL": f"unix://{tmp_path}/s",
        "MOAT_KV_CONFIG": "",
        **more,
    }


def moat(
    tmp_path: pathlib.Path, *args: str, stdin: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run `moat kv ARGS` to its end."""
    found = environment(tmp_path, **more)
    words = ["kv", *args]
    return forking.forker(found).run(words, found, stdin=stdin, limit_s=PATIENCE_S)


@contextmanager
def staying(
    tmp_path: pathlib.Path, *args: str, **more: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A `moat kv ARGS` that stays, and its first line; killed at the end."""
    process = subprocess.Popen(
        [*MOAT, *args],
        env=environment(tmp_path, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


@contextmanager
def server(
    tmp_path: pathlib.Path, *args: str, name: str = "n1", **more: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that is ready, and the line that says so."""
    words = ["server", name, "--port", "0", "--unix", str(tmp_path / "s"), *args]
    with staying(tmp_path, *words, **more) as found:
        yield found
