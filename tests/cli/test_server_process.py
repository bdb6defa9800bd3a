"""`moat kv server` as a process: it says when it is ready, serves, and ends cleanly."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.cli.processes import LOOK_S, environment, moat, server, staying

pytestmark = pytest.mark.timeout(180)  # many processes, one after the other


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_server_keeps_its_data_and_ends_cleanly(
    tmp_path: pathlib.Path, number: signal.Signals, code: int
) -> None:
    for expected in (None, "123\n"):
        with server(tmp_path) as (process, line):
            assert line.startswith("server n1 is ready: tcp://127.0.0.1:")
            assert line.endswith(f" unix://{tmp_path}/s\n")
            if expected is None:
                assert moat(tmp_path, "data", "one.two.three", "set", "-e", ":", "123").stdout == ""
            shown = moat(tmp_path, "data", "one.two.three")
            assert (shown.stdout, shown.stderr, shown.returncode) == ("123\n", "", 0)
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
            assert (process.returncode, out, err) == (code, "", "")
        assert not (tmp_path / "s").exists()
    assert list((tmp_path / "state").rglob("tree.sqlite"))


def test_whoever_waits_is_told_when_it_is_ready(tmp_path: pathlib.Path) -> None:
    place = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(place)
        systemd.settimeout(30)
        out, into = os.pipe()
        words = ["kv", "server", "n1", "--port", "0", "--engine", "memory", "--ready-fd", str(into)]
        process = subprocess.Popen(
            [sys.executable, "-m", "moat_kv_cli", *words],
            env=environment(tmp_path, NOTIFY_SOCKET=place, WATCHDOG_USEC="200000"),
            stdout=subprocess.DEVNULL,
            pass_fds=[into],
        )
        os.close(into)
        try:
            with os.fdopen(out) as ready:
                assert ready.read().startswith("tcp://127.0.0.1:")
            assert systemd.recv(1000).startswith(b"READY=1\n")
            assert systemd.recv(1000) == b"WATCHDOG=1"
            assert systemd.recv(1000) == b"WATCHDOG=1"
            process.terminate()
            told = b""
            while not told.startswith(b"STOPPING=1"):
                told = systemd.recv(1000)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def test_places_that_are_taken_are_told_in_one_line(tmp_path: pathlib.Path) -> None:
    with server(tmp_path, "--engine", "memory") as (process, line):
        port = line.partition(" unix:")[0].rpartition(":")[2]
        taken = moat(tmp_path, "server", "n2", "--port", port)
        assert taken.stderr == (
            f"moat: cannot listen on 127.0.0.1 port {port}: address already in use "
            "(--port takes another)\n"
        )
        assert taken.returncode == 1
        taken = moat(tmp_path, "server", "n2", "--port", "0", "--unix", str(tmp_path / "s"))
        assert taken.stderr == f"moat: cannot listen on {tmp_path}/s: another server does\n"
        assert taken.returncode == 1
        process.kill()
        process.wait()
    # What a killed server leaves behind is taken over.
    with server(tmp_path, "--engine", "memory") as (_, line):
        assert line.startswith("server n1 is ready")
    (tmp_path / "file").write_text("mine")
    taken = moat(tmp_path, "server", "n2", "--port", "0", "--unix", str(tmp_path / "file"))
    assert taken.stderr.endswith("/file: it is there and is no socket\n")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_data_file_in_use_is_told_in_one_line(tmp_path: pathlib.Path) -> None:
    with server(tmp_path, "--data", str(tmp_path / "d")):
        second = moat(tmp_path, "server", "n1", "--port", "0", "--data", str(tmp_path / "d"))
        assert second.stderr.startswith(f"moat: {tmp_path}/d/tree.sqlite is in use by ")
        assert second.stderr.count("\n") == 1
        assert second.returncode == 1


def test_interrupting_a_watcher_is_130_without_a_traceback(tmp_path: pathlib.Path) -> None:
    with server(tmp_path, "--engine", "memory"):
        watcher = subprocess.Popen(
            [sys.executable, "-m", "moat_kv_cli", "kv", "data", "a", "watch", "-o", "jsonl"],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                if '"watchers": 1' in moat(tmp_path, "status", "-o", "json").stdout:
                    break
                time.sleep(LOOK_S)
            moat(tmp_path, "data", "a", "set", "-e", ":", "1")
            assert watcher.stdout is not None
            assert json.loads(watcher.stdout.readline())["value"] == 1
            watcher.send_signal(signal.SIGINT)
            out, err = watcher.communicate(timeout=30)
            assert (watcher.returncode, out, err) == (130, "", "")
        finally:
            watcher.kill()
            watcher.communicate()


def test_a_watcher_tells_that_the_server_is_away_and_goes_on(tmp_path: pathlib.Path) -> None:
    data = ["--data", str(tmp_path / "d")]
    with server(tmp_path, *data) as (first, _):
        moat(tmp_path, "data", "a", "set", "-e", ":", "1")
        with staying(tmp_path, "data", "a", "watch", "-f", "-o", "value") as (watcher, line):
            assert line == "1\n"
            assert watcher.stdout is not None
            assert watcher.stderr is not None
            first.send_signal(signal.SIGTERM)
            assert watcher.stderr.readline() == "moat: disconnected; trying again\n"
            first.wait(30)
            with server(tmp_path, *data):
                assert watcher.stderr.readline() == "moat: connected again\n"
                moat(tmp_path, "data", "a", "set", "-e", ":", "2")
                assert watcher.stdout.readline() == "2\n"


def test_a_reader_that_leaves_early_is_no_reason_to_complain(tmp_path: pathlib.Path) -> None:
    with server(tmp_path, "--engine", "memory"):
        moat(tmp_path, "data", "a", "set", "-v", ":", "x" * 120_000)
        command = f"{sys.executable} -m moat_kv_cli kv data a | head -c 1"
        done = subprocess.run(
            ["bash", "-c", command],
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.stdout, done.stderr) == ("x", "")


def test_a_quick_command_imports_neither_tables_nor_yaml_nor_the_server(
    tmp_path: pathlib.Path,
) -> None:
    code = (
        "import sys, anyio\n"
        "from moat_kv_cli import main\n"
        "anyio.run(main.invoke, ['kv', 'data', 'a'])\n"
        "slow = ('rich', 'ruyaml', 'moat_kv.server', 'moat_kv.engine', 'moat_kv_runner', 'sqlite3',"
        " 'moat_kv.code')\n"
        "print(sorted(set(slow) & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "[]\n"
