"""The processes that take part: our server, the echo server, and Redis where it is installed.

Each is started for a benchmark, on a free port of loopback or on a Unix socket, with its files in
the run's folder, and ended with it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio

import moat_kv
from benchmarks import echo, resp
from benchmarks.scale import Scale
from moat_kv import config
from moat_kv.testing import ports

#: A process that is asked to end has so many seconds.
END_S = 20.0
#: How long Redis may take until it can be reached, in seconds.
REDIS_START_S = 10.0


class Place:
    """Where and how large a run is. `folder` is on the disk that is measured."""

    def __init__(self, folder: pathlib.Path, scale: Scale, *, unix: bool = False) -> None:
        self.folder = folder
        self.scale = scale
        self.unix = unix  # Unix sockets instead of TCP over loopback
        #: Folders of servers that have ended, by how many entries they have.
        self.filled: dict[int, pathlib.Path] = {}
        self._names = 0

    def new(self, name: str) -> pathlib.Path:
        """A path in the folder that nobody has used yet."""
        self._names += 1
        return self.folder / f"{name}{self._names}"

    # Our server ---------------------------------------------------------------------------------

    @contextmanager
    def server(
        self, *, data: pathlib.Path | None = None, engine: str = "sqlite", name: str = "bench"
    ) -> Iterator[RunningServer]:
        """`moat kv server`, as anybody starts it; without `data` in a new folder."""
        data = data or self.new("data")
        unix = self.new("socket")
        settings = self.new("config")
        settings.write_text("")
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "moat_kv_cli", "kv", "server", name]
        command += ["--config", str(settings), "--data", str(data), "--engine", engine]
        command += ["--port", "0", "--unix", str(unix), "--ready-fd", str(writing)]
        began = time.perf_counter()
        with process(command, pass_fds=[writing]) as child:
            os.close(writing)
            with os.fdopen(reading) as ready:
                urls = ready.read().split()
            if not urls:
                raise RuntimeError(f"the server did not start (exit code {child.wait()})")
            url = next(url for url in urls if url.startswith("unix:") == self.unix)
            yield RunningServer(url, data, child.pid, time.perf_counter() - began)

    # The others ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def echo(self) -> AsyncIterator[echo.EchoClient]:
        """A client of an echo server of its own."""
        unix = self.new("echo")
        command = [sys.executable, "-m", "benchmarks.echo", str(unix)]
        with process(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            port = int(child.stdout.readline())
            async with echo.open_echo(port, str(unix) if self.unix else None) as client:
                yield client

    @asynccontextmanager
    async def redis(self) -> AsyncIterator[resp.RedisClient | None]:
        """A client of a Redis server of its own that syncs each write; None: not installed."""
        program = shutil.which("redis-server")
        if program is None:
            yield None
            return
        folder, unix, port = self.new("redis"), self.new("socket"), ports.free_port()
        folder.mkdir()
        command = [program, "--dir", str(folder), "--bind", "127.0.0.1", "--port", str(port)]
        command += ["--unixsocket", str(unix), "--save", "", "--daemonize", "no"]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--logfile", "redis.log"]
        with process(command):
            with anyio.fail_after(REDIS_START_S):
                while not unix.exists():  # noqa: ASYNC110  # Redis tells nobody when it is ready
                    await anyio.sleep(0.02)
            async with resp.open_redis(port, str(unix) if self.unix else None) as client:
                yield client


class RunningServer:
    """One of our servers: how to reach it, and what to look at."""

    def __init__(self, url: str, data: pathlib.Path, pid: int, started_in_s: float) -> None:
        self.url = url
        self.data = data
        self.pid = pid
        self.started_in_s = started_in_s

    def client(self) -> contextlib.AbstractAsyncContextManager[moat_kv.Client]:
        return moat_kv.open_client(self.url, name="bench", config=config.Config())

    def cpu_s(self) -> float:
        """See `cpu_s`."""
        return cpu_s(self.pid)

    def memory_bytes(self) -> int:
        """What it has in memory at present."""
        done = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, check=True, text=True
        )
        return int(done.stdout) * 1024


def cpu_s(pid: int) -> float:
    """The processor time that a process has taken so far, in seconds. Linux only."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def process(
    command: list[str],
    *,
    pass_fds: list[int] | None = None,
    stdout: int = subprocess.DEVNULL,
    stderr: int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A child in this checkout, until the context ends. Its errors are shown, but for `stderr`."""
    root = pathlib.Path(__file__).parent.parent
    child = subprocess.Popen(
        command,
        pass_fds=pass_fds or [],
        stdout=stdout,
        stderr=stderr,
        text=True,
        cwd=root,
        env=_environment(root),
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _environment(root: pathlib.Path) -> dict[str, str]:
    """Ours, without what would change the servers; the packages are those of this checkout."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("MOAT_KV_")}
    kept["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "runner"), str(root / "cli")])
    return kept
