"""The thermostat in `examples/state`: its README's commands, and its dashboard."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest

from moat_kv.state import metrics
from moat_kv.testing import ports
from tests.cli import processes

EXAMPLE = processes.ROOT / "examples" / "state"

pytestmark = pytest.mark.timeout(180)


@contextlib.contextmanager
def script(place: pathlib.Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=processes.ROOT,
        env=processes.environment(place),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def run_panel(place: pathlib.Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/state/panel.py", "hall", *words],
        cwd=processes.ROOT,
        env=processes.environment(place),
        capture_output=True,
        text=True,
        timeout=processes.PATIENCE_S,
    )


def model_of(place: pathlib.Path) -> dict[str, object]:
    shown = processes.moat(place, "model", "get", "Thermostat.hall", "-o", "json")
    found: dict[str, object] = json.loads(shown.stdout or "{}")
    return found


def test_panel_heater_and_the_inline_job_share_the_model(tmp_path: pathlib.Path) -> None:
    figures = ports.free_port()
    bus = [sys.executable, "-m", "moat_kv.testing.onewire", "--port", "0"]
    with (
        processes.server(tmp_path, "--engine", "memory"),
        subprocess.Popen(bus, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owserver,
    ):
        try:
            port = json.loads(line_of(owserver))["port"]
            for words in (["--no-jobs", "examples/onewire"], ["examples/state"]):
                loaded = processes.moat(tmp_path, "code", "load", *words, "-n", "pi3")
                assert loaded.returncode == 0, loaded.stderr
            job = ["run", "-n", "pi3", "at", "thermostat.sensor", "set", "-e", "port", str(port)]
            assert processes.moat(tmp_path, *job, "-e", "interval_s", "0.2").returncode == 0
            heater = ["examples/state/heater.py", "hall", "--metrics", str(figures)]
            with (
                processes.staying(tmp_path, "run", "-n", "pi3", "all"),
                script(tmp_path, *heater) as heating,
            ):
                assert line_of(heating) == "hall: ready, target 20"
                end = time.monotonic() + 2 * processes.PATIENCE_S
                while not isinstance(model_of(tmp_path).get("actual"), float):
                    assert time.monotonic() < end
                shown = run_panel(tmp_path, "29.8")
                assert re.match(r"hall: [\d.]+ of 30 degrees, heater o", shown.stdout), shown
                assert line_of(heating) == "hall: heater on"
                refused = run_panel(tmp_path, "31")
                assert (refused.returncode, "31.0 is refused" in refused.stderr) == (1, True)
                by_hand = ["model", "set", "Thermostat.hall", "-e", "target", "6"]
                assert processes.moat(tmp_path, *by_hand).returncode == 0
                assert line_of(heating) == "hall: heater off"
                url = f"http://127.0.0.1:{figures}/metrics"
                with urllib.request.urlopen(url, timeout=10) as answer:
                    assert b'myosin_commit_latency_count{model="Thermostat"}' in answer.read()
                heating.send_signal(signal.SIGINT)
                assert heating.wait(processes.PATIENCE_S) == 0
        finally:
            owserver.kill()


def test_the_dashboard_shows_what_there_is() -> None:
    dashboard = json.loads((EXAMPLE / "dashboard.json").read_text())
    asked = json.dumps([each["targets"] for each in dashboard["panels"]])
    shown = {re.sub(r"_(count|sum)$", "", name) for name in re.findall(r"myosin_[a-z_]+", asked)}
    text = generate_latest(metrics.registry).decode()
    there = set(re.findall(r"^# TYPE (myosin_\w+) ", text, re.MULTILINE))
    assert shown == {name for name in there if not name.endswith("_created")}
