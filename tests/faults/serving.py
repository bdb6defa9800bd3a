"""A real server process for the fault commands: started, killed, frozen, measured from outside.

`python -m moat_kv_cli kv server` on SQLite, on a Unix socket whose place stays the same over
restarts and on a free port of loopback. Only processes that were started here are touched.
"""

from __future__ import annotations

import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

_ROOT = pathlib.Path(__file__).parents[2]
#: A server that is not ready by then never will be, in seconds.
START_LIMIT_S = 30.0
#: A server that has been told to end has done so by then, in seconds.
END_LIMIT_S = 30.0
#: A process that has been stopped does nothing more by then, in seconds.
STOP_LIMIT_S = 20.0


class ServerProcess:
    """A server's process, or the next one after a crash. `folder` holds everything it leaves."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        name: str = "n1",
        data: pathlib.Path | None = None,
        config: pathlib.Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.config = config
        self.name = name
        self.data = data or folder / "data"
        self.options = list(options)
        self.socket = folder / "socket"
        self.log = folder / "log.txt"
        self.tcp_url = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it and wait until it serves. Raises RuntimeError with what it said otherwise."""
        assert self._process is None
        reading, writing = os.pipe()
        self._process = self._spawn(writing)
        os.close(writing)
        with os.fdopen(reading) as ready, anyio.fail_after(START_LIMIT_S):
            # At its end, too, the process closes the pipe.
            lines = await anyio.to_thread.run_sync(ready.read)
        if not lines:
            code = self._process.wait()
            raise RuntimeError(f"the server ended with code {code}: {self.log.read_text()[-2000:]}")
        self.tcp_url = lines.split()[0]

    def _spawn(self, ready_fd: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "moat_kv_cli", "kv", "server", self.name]
        command += ["--data", str(self.data), "--unix", str(self.socket), "--port", "0"]
        command += ["--ready-fd", str(ready_fd), *self.options]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=_ROOT,
                stdout=log,
                stderr=log,
                pass_fds=[ready_fd],
                env=environment(self.config),
            )

    async def kill(self) -> None:
        """SIGKILL: nothing of it runs any further."""
        self.signal(signal.SIGKILL)
        await self._wait()

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        return await self._wait()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """It does not run meanwhile, though its sockets stay open."""
        self.signal(signal.SIGSTOP)
        await until_stopped(self.pid)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    async def _wait(self) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        codes: list[int] = []
        with anyio.CancelScope(shield=True):
            codes.append(await anyio.to_thread.run_sync(process.wait, END_LIMIT_S))
        return codes[0]

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def memory_bytes(self, field: str = "VmRSS") -> int:
        """Its resident memory now; VmHWM: the most that it ever was."""
        text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return next(
            int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(field)
        )

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208  # a count, no paths

    def limit(self, which: int, soft: int) -> None:
        """Change a limit of the running process, up to its hard limit."""
        _, hard = resource.prlimit(self.pid, which)
        resource.prlimit(self.pid, which, (soft, hard))


def environment(config: pathlib.Path | None) -> dict[str, str]:
    """Nothing of this machine's settings, and our own packages first."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("MOAT_KV")}
    paths = [str(_ROOT), str(_ROOT / "cli"), str(_ROOT / "runner")]
    if config is not None:
        kept["MOAT_KV_CONFIG"] = str(config)
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "XDG_CONFIG_HOME": str(_ROOT / "nowhere")}


@asynccontextmanager
async def served(
    folder: pathlib.Path, *, data: pathlib.Path | None = None, options: Sequence[str] = ()
) -> AsyncIterator[ServerProcess]:
    """A server for as long as the context lasts; then whichever process is its last is killed."""
    server = ServerProcess(folder, data=data, options=options)
    try:
        await server.start()
        yield server
    finally:
        if server.is_alive():
            server.signal(signal.SIGCONT)
            await server.kill()


async def until_stopped(pid: int) -> None:
    """Wait until none of its threads runs: on a busy machine they go on for a moment."""
    with anyio.fail_after(STOP_LIMIT_S):
        while any(map(_runs, os.listdir(f"/proc/{pid}/task"))):  # noqa: PTH208  # numbers
            await anyio.sleep(0.002)


def _runs(thread: str) -> bool:
    """Whether it is neither stopped nor gone."""
    try:
        text = pathlib.Path(f"/proc/{thread}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "TtZX"


async def eventually(condition: object, limit_s: float = 30.0) -> float:
    """Wait until a callable gives something true; how long that took, in seconds."""
    assert callable(condition)
    began = time.monotonic()
    with anyio.fail_after(limit_s):
        while not condition():
            await anyio.sleep(0.01)
    return time.monotonic() - began
