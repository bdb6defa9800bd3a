"""The demonstration's processes: a server, runner nodes, a bus. Each is ended by its own id.

`play` starts them and asks whether they live. Their output goes to files in the demonstration's
folder. They are in sessions of their own, so that Ctrl-C reaches the demonstration alone, which
then ends them in order.
"""

from __future__ import annotations

import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from moat_kv.testing import ports
from moat_kv_cli import command
from moat_kv_cli.demo import network

#: How long a child may take to be ready, and to end when asked, in seconds.
START_S = 40.0
END_S = 4.0

#: What owserver simulates: a thermometer of each of two families, another one, and a switch.
OWSERVER_DEVICES = "--mock=10,28,28,05"


class Child:
    """One process."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: pathlib.Path) -> None:
        self.name = name
        self.log = log
        #: It was ended on purpose.
        self.ended = False
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL: no chance to say good-bye."""
        self.ended = True
        self._process.kill()
        self._process.wait()

    def end(self, until: float) -> None:
        """Wait for an end that was asked for; enforce it when that time has come."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask_to_end(self) -> None:
        self.ended = True
        if self.lives:
            self._process.send_signal(signal.SIGTERM)

    def last_lines(self, count: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])


class Children:
    """All of them, in the order in which they were started."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        #: Of the server, or of all, with blanks between them.
        self.url = ""
        self.network: network.Network | None = None
        self._all: list[Child] = []
        self._environment = dict(os.environ)
        # Nobody's own settings have a part in this, and nothing is left of it.
        settings = folder / "config.yaml"
        settings.write_text(f"runner: {{logs: {json.dumps(str(folder / 'logs'))}}}\n")
        self._environment["MOAT_KV_CONFIG"] = str(settings)

    def server(self) -> str:
        """Start a server on a free port; its URL when it serves."""
        out, into = os.pipe()
        try:
            words = ["kv", "server", "demo", "--port", "0", "--data", str(self.folder / "data")]
            child = self._moat("server", [*words, "--ready-fd", str(into)], pass_fds=[into])
        finally:
            os.close(into)
        with os.fdopen(out) as ready:
            url = self._first_line(child, ready.fileno()).strip()
        self._environment["MOAT_KV_URL"] = self.url = url
        return url

    def servers(self) -> str:
        """Start three servers of one network instead; their URLs with blanks between them."""
        self.network = network.Network(self.folder / "network")
        self._environment["MOAT_KV_URL"] = self.url = " ".join(self.network.start())
        return self.url

    def node(self, name: str, nodes: int) -> Child:
        """Start a runner for jobs of all kinds."""
        words = ["kv", "run", "everything", "--name", name, "--nodes", str(nodes), "--verbose"]
        return self._moat(name, words)

    def bus(self, kind: str) -> tuple[str, int]:
        """Start a 1-wire bus; what it is, and its port. `kind`: auto, owserver, simulated."""
        program = shutil.which("owserver")
        if kind == "simulated" or (kind == "auto" and program is None):
            return "the simulated bus", self._simulated_bus()
        if program is None:
            raise command.Refused("owserver is not installed (Debian: apt-get install owserver)")
        port = ports.free_port()
        words = [program, "--foreground", "-p", f"127.0.0.1:{port}", OWSERVER_DEVICES]
        child = self._start("bus", words)
        _wait_for_port(child, port)
        return "owserver", port

    def _simulated_bus(self) -> int:
        out, into = os.pipe()
        try:
            child = self._start("bus", [sys.executable, "-m", "moat_kv.testing.onewire"], into)
        finally:
            os.close(into)
        with os.fdopen(out) as ready:
            port: int = json.loads(self._first_line(child, ready.fileno()))["port"]
        return port

    def _moat(self, name: str, words: Sequence[str], pass_fds: Sequence[int] = ()) -> Child:
        return self._start(name, [sys.executable, "-m", "moat_kv_cli", *words], None, pass_fds)

    def _start(
        self,
        name: str,
        words: Sequence[str],
        stdout: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        log = self.folder / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=stdout if stdout is not None else file,
                stderr=file,
                env=self._environment,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._all.append(child)
        return child

    def _first_line(self, child: Child, fd: int) -> str:
        """The first line of a pipe. Raises Refused if it does not come."""
        text = b""
        give_up_at = time.monotonic() + START_S
        while b"\n" not in text:
            left = give_up_at - time.monotonic()
            readable, _, _ = select.select([fd], [], [], max(0.0, left))
            chunk = os.read(fd, 4096) if readable else b""
            if not chunk:
                raise command.Refused(f"{child.name} did not start:\n{child.last_lines()}")
            text += chunk
        return text.partition(b"\n")[0].decode()

    def unexpected_end(self) -> Child | None:
        """A child that ended by itself."""
        return next((each for each in self._all if not each.ended and not each.lives), None)

    def running(self) -> Mapping[str, int]:
        """The ids of those that live, by name."""
        servers = self.network.pids if self.network is not None else {}
        return servers | {each.name: each.pid for each in self._all if each.lives}

    def end_all(self) -> None:
        """End what lives, the last started first; the server so goes after its clients."""
        for child in reversed(self._all):
            child.ask_to_end()
            # owserver does not go while somebody is connected to it.
            child.end(time.monotonic() + (0.2 if child.name == "bus" else END_S))
        if self.network is not None:
            self.network.end()


def _wait_for_port(child: Child, port: int) -> None:
    give_up_at = time.monotonic() + START_S
    while child.lives and time.monotonic() < give_up_at:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise command.Refused(f"{child.name} did not start:\n{child.last_lines()}")
