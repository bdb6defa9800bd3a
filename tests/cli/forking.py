"""Commands as processes that need not start Python anew: a process that has read the program forks.

`processes.moat` runs through it what ends by itself. The forked process is what `python -m
moat_kv_cli` is once it has imported the command, and no more than that has been imported: it has
its own words, environment, folder, files and exit code. What is tested of a start itself, of
signals, of terminals, is started for real.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import IO

#: A line with an order, and with an answer, is no longer than that, in bytes.
LINE_BYTES = 1 << 20


class Forker:
    """Runs commands one after the other."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cli.forking", str(theirs.fileno())],
                env={**environment},
                cwd=pathlib.Path(__file__).parents[2],
                pass_fds=[theirs.fileno()],
            )
        self._line = ours
        self._answers = ours.makefile("rb")
        self._lock = threading.Lock()

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], *, stdin: str, limit_s: float
    ) -> subprocess.CompletedProcess[str]:
        """One command to its end. Raises TimeoutExpired."""
        order = {
            "words": [*words],
            "environment": {**environment},
            "folder": str(pathlib.Path.cwd()),
        }
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(stdin.encode())
            given.seek(0)
            with self._lock:
                try:
                    code, was_killed = self._carry_out(order, [given, out, err], limit_s)
                except BaseException:
                    # The answer would be taken for the next one's.
                    _forkers.pop(os.getpid(), None)
                    self.close()
                    raise
            texts = [(each.seek(0), each.read().decode())[1] for each in (out, err)]
        if was_killed:
            raise subprocess.TimeoutExpired([*words], limit_s, *texts)
        return subprocess.CompletedProcess([*words], code, *texts)

    def _carry_out(
        self, order: Mapping[str, object], files: Sequence[IO[bytes]], limit_s: float
    ) -> tuple[int, bool]:
        """Its exit code, and whether it was killed for being late."""
        text = json.dumps(order).encode() + b"\n"
        socket.send_fds(self._line, [text], [each.fileno() for each in files])
        late = _Late(int(self._answers.readline()), limit_s)
        try:
            return int(self._answers.readline()), late.was_killed
        except BaseException:
            late.kill()
            raise
        finally:
            late.timer.cancel()

    def close(self) -> None:
        """End it: it has nothing to read any more."""
        self._answers.close()
        self._line.close()
        # It may still wait for a command that does not end.
        self._process.kill()
        self._process.wait(10)


class _Late:
    """Kills a process that does not end in time."""

    def __init__(self, pid: int, limit_s: float) -> None:
        self.was_killed = False
        self._pid = pid
        self.timer = threading.Timer(limit_s, self.kill)
        self.timer.start()

    def kill(self) -> None:
        self.was_killed = True
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.kill(self._pid, signal.SIGKILL)


_forkers: dict[int, Forker] = {}


def forker(environment: Mapping[str, str]) -> Forker:
    """That of this process."""
    found = _forkers.get(os.getpid())
    if found is None:
        found = _forkers[os.getpid()] = Forker(environment)
        atexit.register(found.close)
    return found


# In the process that forks --------------------------------------------------------------------


def main() -> None:
    """Carry out orders until there are no more."""
    from moat_kv_cli import main as command

    line = socket.socket(fileno=int(sys.argv[1]))
    while True:
        text, files, _flags, _address = socket.recv_fds(line, LINE_BYTES, 3)
        while text and not text.endswith(b"\n"):
            text += line.recv(LINE_BYTES)
        if not text:
            return
        order = json.loads(text)
        pid = os.fork()
        if pid == 0:
            line.close()
            _become(order, files)
            command.main()
            raise AssertionError("the command ends its process")
        for each in files:
            os.close(each)
        line.sendall(b"%d\n" % pid)
        _pid, status = os.waitpid(pid, 0)
        line.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(order: Mapping[str, object], files: Sequence[int]) -> None:
    words, environment, folder = order["words"], order["environment"], order["folder"]
    assert isinstance(words, list)
    assert isinstance(environment, dict)
    assert isinstance(folder, str)
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["moat", *words]


if __name__ == "__main__":
    main()
