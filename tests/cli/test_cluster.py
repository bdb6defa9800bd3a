"""`moat kv cluster`: what a user sees of a network that fails, and that nothing is left of it."""

from __future__ import annotations

import importlib.util
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from moat_kv.testing import nats
from moat_kv_cli import main
from tests.cli.box import Box, processes_of
from tests.cli.processes import MOAT, environment

pytestmark = pytest.mark.timeout(180)  # many processes, one after the other


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """One NATS node and two servers, for all tests of this file; the last thing is its end."""
    box = Box(tmp_path_factory.mktemp("cluster"))
    said = box.do("up", "--nodes", "1", "--servers", "2", "--port", "0")
    assert said.startswith(
        f"1 NATS node and 2 servers are up, in {box.folder}\ns1  tcp://127.0.0.1:"
    )
    assert f"moat kv cluster down --dir {box.folder}" in said
    box.urls = {name: str(each["url"]) for name, each in box.seen().items()}
    yield box
    pids = [int(str(each["pid"])) for each in box.seen().values() if "pid" in each]
    assert len(pids) == 3
    assert box.do("down") == "the cluster is down, and nothing is left of it\n"
    assert not box.folder.exists()
    assert processes_of(box.folder) == []
    code, line = box.refused("down")
    assert (code, line) == (
        3,
        f"moat: there is no cluster in {box.folder}; `moat kv cluster up` starts one\n",
    )


def test_a_second_up_says_that_it_is_up(box: Box) -> None:
    assert "1 NATS node and 2 servers are up already" in box.do("up")


def test_another_cluster_in_its_place_is_refused(box: Box) -> None:
    code, line = box.refused("up", "--servers", "3")
    assert code == 1
    assert "there is one of 1 NATS node and 2 servers, from port" in line
    assert f"`moat kv cluster down --dir {box.folder}` ends it" in line


def test_what_both_sides_of_a_cut_wrote_meets_when_it_is_healed(box: Box) -> None:
    box.data("s1", "lamp", "set", "-v", ":", "on")
    box.becomes("s2", "lamp", "on\n")
    assert box.do("cut", "s2") == "s2 is cut off, and has noticed\n"
    kept = "moat: kept on s2; not in the network yet\n"
    box.data("s2", "lamp", "set", "-v", ":", "green", says=kept)
    box.data("s1", "lamp", "set", "-v", ":", "red")
    assert box.data("s1", "lamp") == "red\n"
    shown = "moat: lamp is kept on s2; not in the network yet\n"
    assert box.data("s2", "lamp", says=shown) == "green\n"
    seen = box.seen()
    assert (seen["s2"]["state"], seen["s2"]["attached"], seen["s2"]["outbox"]) == ("cut", False, 1)
    assert (seen["s1"]["state"], seen["s1"]["attached"], seen["s1"]["via"]) == ("up", True, "nats1")
    healed = box.do("heal")
    assert "healed: every server that runs is in touch" in healed
    assert f"1 conflict: moat kv --url {box.urls['s1']} conflict list" in healed
    for name in ("s1", "s2"):
        box.becomes(name, "lamp", "red\n")
    assert "green" in box.data("s1", ":.moat.kv.conflict", "list", "-r")


def test_what_is_killed_is_shown_and_starts_again(box: Box) -> None:
    assert box.do("kill", "s1") == "killed: s1\n"
    lines = [line.split() for line in box.do("status").splitlines()]
    assert lines[0][:5] == ["NAME", "KIND", "PID", "URL", "STATE"]
    assert next(line for line in lines if line[0] == "s1")[3] == "dead"
    assert box.refused("kill", "s1") == (1, "moat: s1 does not run\n")
    assert box.do("start", "s1") == "started: s1\n"
    assert box.seen()["s1"]["state"] == "up"
    assert box.refused("start", "s1") == (1, "moat: s1 runs already\n")


def test_what_is_frozen_is_shown_and_thaws(box: Box) -> None:
    assert box.do("freeze", "s1") == "frozen: s1\n"
    assert box.seen()["s1"]["state"] == "frozen"
    assert box.do("thaw", "s1") == "thawed: s1\n"
    assert box.seen()["s1"]["attached"] is True


def test_an_unknown_name_is_told(box: Box) -> None:
    code, line = box.refused("cut", "s9")
    assert code == 3
    assert "there is no 's9' in the cluster; there is: nats1, s1, s2" in line


def test_a_port_that_is_taken_is_told_and_nothing_is_left(tmp_path: pathlib.Path) -> None:
    box = Box(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert box.refused("up", "--nodes", "1", "--servers", "1", "--port", port) == (
            1,
            f"moat: something listens on port {port}; --port takes others\n",
        )
    assert not box.folder.exists()


def test_an_interrupted_up_leaves_nothing(tmp_path: pathlib.Path) -> None:
    box = Box(tmp_path)
    words = ["cluster", "up", "--nodes", "1", "--port", "0", "--dir", str(box.folder)]
    process = subprocess.Popen(
        [*MOAT, *words], env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    while not (box.folder / "nats1" / "log").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not box.folder.exists()
    assert processes_of(box.folder) == []


@pytest.mark.anyio
async def test_without_nats_one_line_says_what_to_install(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_program() -> str:
        raise nats.NatsFailed("there is none")

    monkeypatch.setattr(nats, "program", no_program)
    words = ["kv", "cluster", "up", "--dir", str(tmp_path / "box")]
    assert await main.invoke(words) == 1
    install = "pip install 'moat-kv-fleet[nats]' has both\n"
    assert capsys.readouterr().err == f"moat: a cluster needs nats-server: {install}"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert await main.invoke(words) == 1
    assert capsys.readouterr().err == f"moat: a cluster needs nats-py and nats-server: {install}"
    assert not [*Box(tmp_path).place.iterdir()]


@pytest.mark.parametrize(
    "word", ["up", "down", "status", "cut", "heal", "kill", "start", "freeze", "thaw"]
)
@pytest.mark.anyio
async def test_each_command_s_help_has_an_example(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await main.invoke(["kv", "cluster", word, "--help"]) == 0
    assert f"moat kv cluster {word}" in capsys.readouterr().out.partition("Example:")[2]
