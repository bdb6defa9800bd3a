"""`moat kv log move`: a server's own tree into a network and back, with a real nats-server."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from moat_kv.testing import nats
from tests.cli.processes import LOOK_S, MOAT, PATIENCE_S, environment, moat, server

pytestmark = pytest.mark.timeout(180)  # many processes, one after the other


@pytest.fixture(scope="module")
def node() -> Iterator[nats.Node]:
    with nats.server() as node:
        yield node


#: Of what a move sends to the network; more than the first 500 entries need, and less than 5000.
HELD_BYTES = 300_000


class Narrow:
    """A way to a node which passes so much of what is sent there, and not a byte more."""

    def __init__(self, target: str, limit_bytes: int) -> None:
        host, _, port = target.partition(":")
        self._target = host, int(port)
        self._left = limit_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        near, _ = self._listener.accept()
        with near, socket.create_connection(self._target) as far:
            answers = threading.Thread(target=_answer, args=(far, near), daemon=True)
            answers.start()
            with contextlib.suppress(OSError):  # its user is killed amid what it does
                while self._left and (data := near.recv(min(self._left, 65536))):
                    self._left -= len(data)
                    far.sendall(data)
                # That it has ended is told when all that it has sent is read.
                while near.recv(65536):
                    pass
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)
            answers.join()

    def close(self) -> None:
        """After its only user has ended."""
        self._thread.join()
        self._listener.close()


def _answer(far: socket.socket, near: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := far.recv(65536):
            near.sendall(data)


def listed(tmp_path: pathlib.Path) -> dict[str, tuple[object, float, str]]:
    """All entries: value, time and record."""
    dumped = moat(tmp_path, "data", ":", "list", "-r", "-o", "json")
    assert dumped.stderr == ""
    return {row["path"]: (row["value"], row["at"], row["id"]) for row in json.loads(dumped.stdout)}


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)


def test_a_tree_goes_into_a_network_and_out_of_it(tmp_path: pathlib.Path, node: nats.Node) -> None:
    network = f"nats://{node.address}/moved"
    folder = tmp_path / "state" / "moat-kv" / "n1"
    with server(tmp_path) as (process, _):
        lines = "".join(f'{{"path":"n:{number}","value":{number}}}\n' for number in range(1_500))
        header = '{"format":"moat-kv dump","version":1,"path":":"}\n'
        assert moat(tmp_path, "data", ":", "load", "-", stdin=header + lines).stderr == ""
        moat(tmp_path, "data", "n:7", "delete")
        moat(tmp_path, "data", "a.b", "set", "-v", "text", "é", "-e", "list", "[1, 2.5]")
        before = listed(tmp_path)
        assert len(before) == 1_500
        refused = moat(tmp_path, "log", "move", "n1", network)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "tree.sqlite is in use by process" in refused.stderr
        end(process)
    moved = moat(tmp_path, "log", "move", "n1", network)
    assert (moved.returncode, moved.stderr) == (0, "")
    assert moved.stdout == (
        f"1500 entries moved to {network}; the old file is {folder}/tree.sqlite.moved\n"
    )
    assert not (folder / "tree.sqlite").exists()
    with server(tmp_path, "--engine", network) as (process, _):
        assert listed(tmp_path) == before
        moat(tmp_path, "data", "a.b", "set", "-e", ":", "2")
        before = listed(tmp_path)
        refused = moat(tmp_path, "log", "move", network, "n1")
        assert (refused.returncode, refused.stdout) == (4, ""), refused.stderr
        assert refused.stderr == f"moat: {network} is served by n1: stop it first\n"
        end(process)
    moved = moat(tmp_path, "log", "move", network, "n1")
    assert (moved.returncode, moved.stderr) == (0, "")
    assert moved.stdout == f"1500 entries moved to {folder}/tree.sqlite\n"
    with server(tmp_path) as (process, _):
        assert listed(tmp_path) == before
        end(process)


def test_only_an_empty_place_takes_a_tree(tmp_path: pathlib.Path, node: nats.Node) -> None:
    network = f"nats://{node.address}/taken"
    for engine in ((), ("--engine", network)):
        with server(tmp_path, *engine) as (process, _):
            assert moat(tmp_path, "data", "a", "set", "-e", ":", str(len(engine))).stderr == ""
            end(process)
    folder = tmp_path / "state" / "moat-kv" / "n1"
    for source, target in ((str(folder), network), (network, "n1")):
        refused = moat(tmp_path, "log", "move", source, target)
        name = network if target == network else folder / "tree.sqlite"
        assert (refused.returncode, refused.stdout) == (4, ""), refused.stderr
        assert refused.stderr == f"moat: {name} is not empty; nothing was moved\n"
    with server(tmp_path) as (process, _):
        assert moat(tmp_path, "data", "a").stdout == "0\n"
        end(process)
    assert not list(folder.glob("*moved*"))


def test_what_waits_on_a_server_is_not_left_behind(tmp_path: pathlib.Path) -> None:
    with nats.server() as node:
        network = f"nats://{node.address}/waiting"
        with server(tmp_path, "--engine", network) as (process, _):
            assert moat(tmp_path, "data", "a", "set", "-e", ":", "1").stderr == ""
            node.stop()
            assert "kept on n1" in moat(tmp_path, "data", "b", "set", "-e", ":", "2").stderr
            end(process)
        node.start()
        refused = moat(tmp_path, "log", "move", network, "n1")
        assert (refused.returncode, refused.stdout) == (4, ""), refused.stderr
        assert "keeps 1 write that the network does not have" in refused.stderr
        with server(tmp_path, "--engine", network) as (process, _):
            while json.loads(moat(tmp_path, "net", "list", "-o", "json").stdout)[0]["outbox"]:
                time.sleep(LOOK_S)
            end(process)
        assert "2 entries moved" in moat(tmp_path, "log", "move", network, "n1").stdout


def test_what_cannot_be_moved_is_told_in_one_line(tmp_path: pathlib.Path, node: nats.Node) -> None:
    network = f"nats://{node.address}/none"
    for words, code, text in (
        (["n1", network], 3, "no tree at "),
        (["n1", "n1"], 128, "FROM and TO are the same"),
        (["n1", "http://x"], 128, "a network is nats://host:port"),
        ([network, "n1"], 3, "no entry in nats://"),
    ):
        if "http" in words[1]:
            with server(tmp_path) as (process, _):
                end(process)
        refused = moat(tmp_path, "log", "move", *words)
        assert (refused.returncode, refused.stderr.count("\n")) == (code, 1), refused.stderr
        assert text in refused.stderr


def test_a_move_that_was_killed_goes_on_with_what_was_written_meanwhile(
    tmp_path: pathlib.Path, node: nats.Node
) -> None:
    network = f"nats://{node.address}/killed"
    folder = tmp_path / "state" / "moat-kv" / "n1"
    lines = "".join(f'{{"path":"n:{number}","value":{number}}}\n' for number in range(5_000))
    header = '{"format":"moat-kv dump","version":1,"path":":"}\n'
    with server(tmp_path) as (process, _):
        assert moat(tmp_path, "data", ":", "load", "-", stdin=header + lines).stderr == ""
        end(process)
    narrow = Narrow(node.address, HELD_BYTES)
    words = [*MOAT, "log", "move", "n1", f"nats://{narrow.address}/killed"]
    moving = subprocess.Popen(words, env=environment(tmp_path), stderr=subprocess.PIPE)
    while node.messages("moat-killed") < 500:
        assert moving.poll() is None
        time.sleep(0.01)
    moving.kill()
    moving.communicate()
    narrow.close()
    assert node.messages("moat-killed") < 5_000
    with server(tmp_path) as (process, _):
        moat(tmp_path, "data", "n:1", "set", "-v", ":", "newer")
        moat(tmp_path, "data", "n:2", "delete")
        end(process)
    moved = moat(tmp_path, "log", "move", "n1", network)
    assert (moved.returncode, moved.stderr) == (0, "")
    assert moved.stdout.startswith(f"4999 entries moved to {network}; the old file is {folder}/")
    with server(tmp_path, "--engine", network) as (process, _):
        found = listed(tmp_path)
        assert len(found) == 4_999
        assert found["n:1"][0] == "newer"
        assert "n:2" not in found
        end(process)
