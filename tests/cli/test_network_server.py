"""`moat kv server --engine nats://...`: a server on a network, with a real nats-server."""

from __future__ import annotations

import json
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from moat_kv.testing import nats
from tests.cli.processes import LOOK_S, MOAT, ROOT, environment, moat, server, staying

pytestmark = pytest.mark.timeout(180)  # many processes, one after the other


@pytest.fixture(scope="module")
def node() -> Iterator[nats.Node]:
    with nats.server() as node:
        yield node


def test_a_server_on_a_network_keeps_its_data_there(
    tmp_path: pathlib.Path, node: nats.Node
) -> None:
    engine = ("--engine", f"nats://{node.address}/house")
    for expected in (None, "123\n"):
        with server(tmp_path, *engine) as (process, line):
            assert line.startswith("server n1 is ready: tcp://127.0.0.1:")
            if expected is None:
                assert moat(tmp_path, "data", "one.two", "set", "-e", ":", "123").stderr == ""
            shown = moat(tmp_path, "data", "one.two")
            assert (shown.stdout, shown.stderr, shown.returncode) == ("123\n", "", 0)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
            assert (process.returncode, out, err) == (0, "", "")
    assert not list((tmp_path / "state").rglob("tree*"))


def test_servers_of_a_network_see_each_others_writes(
    tmp_path: pathlib.Path, node: nats.Node
) -> None:
    (tmp_path / "c.yaml").write_text(
        f"server: {{engine: 'nats://{node.address}', nats: {{network: flat}}}}\n"
    )
    first, second = tmp_path / "a", tmp_path / "b"
    for place in (first, second):
        place.mkdir()
    settings = {"MOAT_KV_CONFIG": str(tmp_path / "c.yaml")}
    with server(first, **settings), server(second, name="n2", **settings):
        assert moat(first, "data", "lamp", "set", "-e", ":", "'on'").stderr == ""
        watching = subprocess.Popen(
            [*MOAT, "data", "lamp", "watch", "-f", "-o", "jsonl"],
            env=environment(second),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert watching.stdout is not None
            lines = iter(watching.stdout.readline, "")
            assert any('"on"' in line for line in lines)
            assert moat(second, "data", "lamp").stdout == "on\n"
            assert moat(first, "data", "lamp", "set", "-e", ":", "'off'").stderr == ""
            assert any('"off"' in line for line in lines)
        finally:
            watching.kill()
            watching.communicate()


def _own_state(place: pathlib.Path) -> str:
    (row,) = [
        each for each in json.loads(moat(place, "net", "list", "-o", "json").stdout) if each["own"]
    ]
    return str(row["state"])


def test_servers_list_each_other_and_tell_who_was_away(tmp_path: pathlib.Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for place in (first, second):
        place.mkdir()
    with nats.server() as node:
        engine = ("--engine", f"nats://{node.address}/listed")
        words = ["server", "n2", "--port", "0", "--unix", str(second / "s"), *engine]
        with server(first, *engine) as (process, _), staying(second, *words):
            until = time.monotonic() + 30
            rows: list[dict[str, Any]] = []
            while len(rows) < 2 and time.monotonic() < until:
                rows = json.loads(moat(first, "net", "list", "-o", "json").stdout)
                time.sleep(LOOK_S)
            told = [(row["node"], row["role"], row["state"], row["own"]) for row in rows]
            assert told == [("n1", "member", "attached", True), ("n2", "member", "attached", False)]
            node.stop()
            kept = moat(first, "data", "a", "set", "-e", ":", "1")
            assert (kept.returncode, kept.stdout) == (0, "")
            assert kept.stderr == "moat: kept on n1; not in the network yet\n"
            until = time.monotonic() + 20
            while _own_state(first) == "attached":
                assert time.monotonic() < until
                time.sleep(LOOK_S)
            node.start()
            until = time.monotonic() + 30
            while "(pending)" in moat(first, "data", ":", "list").stdout:
                assert time.monotonic() < until
                time.sleep(LOOK_S)
            while moat(second, "data", "a").stdout != "1\n":
                assert time.monotonic() < until
                time.sleep(LOOK_S)
            process.send_signal(signal.SIGTERM)
            _out, err = process.communicate(timeout=30)
            lines = err.splitlines()
            cut, again = [line for line in lines if " moat_kv.engine.network: " in line]
            assert "cut off from the network" in cut
            assert "in touch with the network again after" in again
            assert again.endswith("writes waiting: 1")


def test_what_cannot_serve_is_told_in_one_line(tmp_path: pathlib.Path, node: nats.Node) -> None:
    with nats.server(jetstream=False) as plain:
        words = ["server", "n1", "--port", "0", "--engine", f"nats://{plain.address}"]
        refused = moat(tmp_path, *words)
    assert refused.returncode == 1
    assert "runs without JetStream: start it with -js" in refused.stderr
    assert refused.stderr.count("\n") == 1
    refused = moat(tmp_path, "server", "n1", "--port", "0", "--engine", "nats://a b")
    assert (refused.returncode, refused.stderr.count("\n")) == (128, 1)


def test_a_newcomers_load_is_shown_on_a_terminal(tmp_path: pathlib.Path, node: nats.Node) -> None:
    engine = ("--engine", f"nats://{node.address}/shown")
    with server(tmp_path, *engine):
        for number in range(3):
            moat(tmp_path, "data", f"a.{number}", "set", "-e", ":", "1")
    ours, theirs = pty.openpty()
    # Another one: the first has a copy, with which there may be nothing to take.
    words = ["server", "n2", "--port", "0", *engine]
    process = subprocess.Popen(
        [*MOAT, *words],
        env=environment(tmp_path, TERM="xterm"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("server n2 is ready")
        os.close(theirs)
        assert b"taking the tree" in os.read(ours, 4096)
    finally:
        process.kill()
        process.communicate()
        os.close(ours)


def test_the_documented_permissions_are_enough(tmp_path: pathlib.Path) -> None:
    text = (ROOT / "docs" / "replication.md").read_text()
    (permissions,) = re.findall(r"```\n# permissions\n(.*?)```", text, re.DOTALL)
    with nats.server(extra=permissions) as node:
        engine = ("--engine", f"nats://moat:secret@{node.address}/house")
        for expected in (None, "1\n"):
            with server(tmp_path, *engine) as (process, line):
                assert line.startswith("server n1 is ready")
                if expected is None:
                    assert moat(tmp_path, "data", "a.b", "set", "-e", ":", "1").stderr == ""
                    assert moat(tmp_path, "data", "a", "set", "-v", "b", "c").stderr == ""
                    assert (
                        moat(tmp_path, "data", "a", "delete", "-r").stdout == "2 entries deleted\n"
                    )
                    assert moat(tmp_path, "data", "a.b", "set", "-e", ":", "1").stderr == ""
                    assert moat(tmp_path, "data", "a.b", "history").stdout.count("\n") == 4
                assert moat(tmp_path, "data", "a.b").stdout == "1\n"
                process.send_signal(signal.SIGTERM)
                assert process.communicate(timeout=30) == ("", "")


@pytest.mark.parametrize("command", ["server", "log move"])
def test_who_is_not_let_in_is_told_why_and_the_secret_is_in_no_line(
    command: str, tmp_path: pathlib.Path
) -> None:
    words = {"server": ["--debug", "server", "n1", "--port", "0", "--verbose", "--engine"]}
    words["log move"] = ["--debug", "log", "move", str(tmp_path / "n1")]
    (tmp_path / "n1").mkdir()
    shutil.copy(_tree(tmp_path), tmp_path / "n1" / "tree.sqlite")
    with nats.server(extra="authorization { user: me, password: right-one }") as node:
        for who in ("me:wr0ng%20one@", "wr0ng-t0ken@", ""):
            ended = moat(tmp_path, *words[command], f"nats://{who}{node.address}/house")
            assert ended.returncode == 2, ended
            assert f"nats://{node.address}/house cannot be used: " in ended.stderr
            assert "Authorization Violation" in ended.stderr
            assert "wr0ng" not in ended.stdout + ended.stderr + node.log_end()
        ended = moat(tmp_path, *words[command], f"nats://me:pass/word@{node.address}/house")
        assert ended.returncode == 128
        assert "%2F" in ended.stderr
        assert "word@" not in ended.stderr
        assert "pass/" not in ended.stderr


def _tree(place: pathlib.Path) -> pathlib.Path:
    """The file of a server that has one entry."""
    with server(place, "--data", str(place / "made"), "--engine", "sqlite") as (process, _):
        assert moat(place, "data", "a", "set", "-e", ":", "1").stderr == ""
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    return place / "made" / "tree.sqlite"


def test_of_two_that_were_cut_off_the_later_wins_and_the_other_is_kept(
    tmp_path: pathlib.Path,
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for place in (first, second):
        place.mkdir()
    with nats.server() as node:
        engine = ("--engine", f"nats://{node.address}/both")
        words = ["server", "n2", "--port", "0", "--unix", str(second / "s"), *engine]
        with server(first, *engine), staying(second, *words):
            assert moat(first, "data", "a", "set", "-e", ":", "0").stderr == ""
            node.stop()
            for number, place in enumerate((first, second), 1):
                kept = moat(place, "data", "a", "set", "-e", ":", str(number))
                assert (kept.returncode, kept.stdout) == (0, "")
                assert kept.stderr == f"moat: kept on n{number}; not in the network yet\n"
                assert moat(place, "data", "a").stdout == f"{number}\n"
            node.start()
            until = time.monotonic() + 20
            ids: list[str] = []
            for place in (first, second):
                while not (ids := moat(place, "conflict", "list", "-o", "value").stdout.split()):
                    assert time.monotonic() < until
                    time.sleep(LOOK_S)
                assert ids[0].startswith("n1:")
                assert moat(place, "data", "a").stdout == "2\n"
            assert moat(second, "conflict", "restore", ids[0]).stdout.startswith("a restored")
            assert moat(second, "data", "a").stdout == "1\n"
            assert moat(second, "conflict", "list").stdout == "no conflicts\n"
