"""The process that forks commands runs them as they would run by themselves."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import threading
from collections.abc import Callable

import pytest

from tests.cli import forking
from tests.cli.processes import MOAT, PATIENCE_S, environment, moat

WORDS = [
    ["--help"],
    ["data", "a", "no-such-verb"],
    ["data", "a.b", "-o", "json"],
    ["code", "a", "set", "-s", "-"],
    ["log", "move", "nowhere", "nats://a b"],
]


@pytest.mark.parametrize("words", WORDS, ids=["help", "usage", "no server", "stdin", "config"])
def test_a_command_says_and_does_the_same_as_when_it_is_started(
    words: list[str], tmp_path: pathlib.Path
) -> None:
    started = subprocess.run(
        [*MOAT, *words],
        env=environment(tmp_path),
        input="return 1 +",
        capture_output=True,
        text=True,
        timeout=30,
    )
    for _ in range(2):  # none leaves anything to the next one
        forked = moat(tmp_path, *words, stdin="return 1 +")
        assert (forked.returncode, forked.stdout, forked.stderr) == (
            started.returncode,
            started.stdout,
            started.stderr,
        )


def test_its_environment_is_its_own(tmp_path: pathlib.Path) -> None:
    def where(**more: str) -> str:
        return moat(tmp_path, "data", "a", **more).stderr

    assert "tcp://127.0.0.1:1" in where(MOAT_KV_URL="tcp://127.0.0.1:1")
    assert f"unix://{tmp_path}/s" in where()


def test_one_that_does_not_end_is_killed(
    tmp_path: pathlib.Path, short_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = short_folder / "ready"
    found = environment(tmp_path, NOTIFY_SOCKET=str(place))
    words = ["kv", "server", "n1", "--engine", "memory", "--port", "0"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, monkeypatch.context() as patch:
        ready.bind(str(place))
        ready.settimeout(PATIENCE_S)

        class WhenReady(threading.Thread):
            """A timer for which the time is over when the command has said something."""

            def __init__(self, _limit_s: float, then: Callable[[], None]) -> None:
                super().__init__()
                self._then = then

            def run(self) -> None:
                ready.recv(1000)
                self._then()

            def cancel(self) -> None:
                self.join()

        patch.setattr(threading, "Timer", WhenReady)
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            forking.forker(found).run(words, found, stdin="", limit_s=PATIENCE_S)
    assert "server n1 is ready" in str(caught.value.output)
    assert moat(tmp_path, "--help").returncode == 0


def test_one_that_is_given_up_leaves_the_next_one_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hurry(Exception):
        pass

    def hurry(*_: object) -> None:
        raise Hurry

    found = environment(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(forking._Late, "__init__", hurry)
        with pytest.raises(Hurry):
            forking.forker(found).run(["--help"], found, stdin="", limit_s=2)
    assert moat(tmp_path, "--help").returncode == 0
