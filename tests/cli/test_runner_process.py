"""`moat kv run all` as a process: jobs run, results are printed, signals end it cleanly."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.cli import processes
from tests.cli.processes import moat, staying

pytestmark = pytest.mark.timeout(180)  # many processes, one after the other


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder of a server that has a procedure."""
    with processes.server(tmp_path, "--engine", "memory"):
        stored = moat(tmp_path, "code", "the.answer", "set", "-s", "-", stdin="return 42")
        assert (stored.returncode, stored.stderr) == (0, "")
        yield tmp_path


def result_of(place: pathlib.Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`... state -r`, again until there is a result."""
    deadline = time.monotonic() + processes.PATIENCE_S
    while True:
        shown = moat(place, *words, "state", "-r")
        if shown.returncode != 3 or time.monotonic() > deadline:
            return shown
        time.sleep(processes.LOOK_S)


def test_a_job_runs_and_its_result_is_printed(place: pathlib.Path) -> None:
    made = moat(place, "run", "at", "a.question", "set", "-c", "the.answer", "-t", "0")
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    with staying(place, "run", "all", "-g", "default") as (runner, line):
        assert line.startswith("runner ")
        assert line.endswith(" is ready: jobs for any node of group default\n")
        shown = result_of(place, "run", "at", "a.question")
        assert (shown.stdout, shown.stderr, shown.returncode) == ("42\n", "", 0)
        runner.send_signal(signal.SIGTERM)
        out, err = runner.communicate(timeout=30)
        assert (runner.returncode, out, err) == (0, "", "")


def test_one_process_runs_jobs_of_all_kinds(place: pathlib.Path) -> None:
    kinds: list[list[str]] = [["run"], ["run", "-n", "pi"], ["run", "-n", "-"]]
    for words in kinds:
        moat(place, *words, "at", "j", "set", "-c", "the.answer", "-t", "0")
    with staying(place, "run", "everything", "--name", "pi") as (runner, line):
        assert line == (
            "runner pi is ready: jobs for any node, this node, all nodes of group default\n"
        )
        results = [result_of(place, *words, "at", "j").stdout for words in kinds]
        assert results == ["42\n", "42\n", "pi  42\n"]
        info = json.loads(moat(place, "run", "info", "-o", "json").stdout)
        assert info["nodes"]["pi"]["roles"] == ["all", "any", "at"]
        assert info["jobs"][0]["state"] == "done"
        runner.send_signal(signal.SIGINT)
        out, err = runner.communicate(timeout=30)
        assert (runner.returncode, out, err) == (130, "", "")


def test_a_failing_job_says_why(place: pathlib.Path) -> None:
    moat(place, "code", "bad", "set", "-s", "-", stdin="x = 1\nreturn x / 0")
    moat(place, "job", "-n", "pi", "at", "b", "set", "-c", "bad", "-t", "0")
    with staying(place, "job", "-n", "pi", "run"):
        shown = result_of(place, "job", "-n", "pi", "at", "b")
        assert shown.stderr == "moat: job b: failed: ZeroDivisionError: division by zero\n"
        assert shown.returncode == 1
        listed = json.loads(moat(place, "error", "list", "-o", "json").stdout)
        assert [each["path"] for each in listed] == [":.moat.kv.run.at.pi.default.b"]
        trace = moat(place, "error", "show", listed[0]["path"]).stdout
        assert "    return x / 0\n" in trace


def test_a_name_that_is_taken_is_4(place: pathlib.Path) -> None:
    with staying(place, "run", "all", "--name", "pi"):
        second = moat(place, "run", "all", "--name", "pi")
        lines = second.stderr.splitlines()
        assert lines[-1].startswith("moat: the runner name pi is taken")
        assert second.returncode == 4
        with staying(place, "run", "all", "--name", "other") as (_, line):
            assert line.startswith("runner other is ready")


def test_a_runner_without_a_server_is_2(tmp_path: pathlib.Path) -> None:
    ended = moat(tmp_path, "run", "all")
    assert ended.stderr.startswith("moat: cannot connect to unix://")
    assert ended.returncode == 2


STUBBORN = """
import anyio
with anyio.CancelScope(shield=True):
    await _client.set(_P("begun"), 1)
while True:
    try:
        await anyio.sleep(0.1)
    except BaseException:
        pass
"""
HASTY = """
import sys
from moat_kv_runner import running
running.STOP_S = 0.3
from moat_kv_cli import main
sys.argv[0] = "moat"
sys.exit(main.main())
"""


def test_an_inline_job_that_does_not_end_is_ended_by_force_and_named(place: pathlib.Path) -> None:
    moat(place, "code", "stubborn", "set", "-s", "-", stdin=STUBBORN)
    moat(place, "run", "at", "j", "set", "-c", "stubborn", "-t", "0")
    moat(place, "run", "at", "k", "set", "-c", "the.answer", "-t", "0")
    runner = subprocess.Popen(
        [sys.executable, "-c", HASTY, "kv", "run", "all", "--name", "pi", "--isolate", "inline"],
        env=processes.environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert result_of(place, "run", "at", "k").stdout == "42\n"
        deadline = time.monotonic() + processes.PATIENCE_S
        while moat(place, "data", "begun").stdout != "1\n":
            assert time.monotonic() < deadline
            time.sleep(processes.LOOK_S)
        runner.send_signal(signal.SIGTERM)
        _, err = runner.communicate(timeout=30)
    finally:
        runner.kill()
    assert runner.returncode == 1
    assert err.splitlines()[-2:] == [
        "moat: job :.moat.kv.run.any.default.j does not end",
        "moat: ended by force",
    ]


STAYING = """
import anyio
print("a line")
_log.info("it has begun")
await anyio.sleep_forever()
"""


def test_what_runs_have_left_outlives_a_killed_runner(place: pathlib.Path) -> None:
    moat(place, "code", "stays", "set", "-s", "-", stdin=STAYING)
    isolated = [":.moat.kv.run.any.default", "set", "-v", "defaults.isolate", "process"]
    moat(place, "data", *isolated)
    moat(place, "run", "at", "j", "set", "-c", "stays", "-t", "0")
    for number in (1, 2):
        with staying(place, "run", "everything", "--name", "pi") as (runner, line):
            assert line.startswith("runner pi is ready")
            wanted = ["log", "-f", "--run", str(number), "--count", "2", "-o", "jsonl"]
            rows = _again(place, *wanted)
            assert [(row["run"], row["level"]) for row in rows] == [(number, None), (number, 20)]
            assert [row["text"] for row in rows] == ["a line", "it has begun"]
            runs = _again(place, "runs", "-o", "jsonl")
            told = [(row["run"], row["outcome"]) for row in runs]
            assert told == [(1, "running")] if number == 1 else [(2, "running"), (1, "cut off")]
            runner.kill()
            runner.communicate()


def _again(place: pathlib.Path, *words: str) -> list[dict[str, object]]:
    """What a verb of the job prints, as soon as there is something to print."""
    deadline = time.monotonic() + processes.PATIENCE_S
    while True:
        ended = moat(place, "run", "at", "j", *words)
        if ended.returncode == 0 or time.monotonic() > deadline:
            assert ended.returncode == 0, ended
            return [json.loads(line) for line in ended.stdout.splitlines()]
        time.sleep(processes.LOOK_S)
