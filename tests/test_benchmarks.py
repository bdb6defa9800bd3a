"""Each benchmark runs, with tiny sizes, and gives figures that can be true. No time is judged."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import machine, outcome, report, rounds, scale, state
from tests import benchmarking

#: Whom each benchmark has beside it, Redis apart.
PEERS = {
    "get": ["echo"],
    "gets": ["echo"],
    "set": ["echo", "SQLite"],
    "sets": ["echo", "SQLite"],
    "watch": ["echo", "SQLite"],
    "watchers": ["echo", "SQLite"],
    "load": ["echo", "SQLite"],
    "tree": ["echo", "SQLite"],
    "start": ["echo", "SQLite"],
    "mirror": ["echo"],
    "state": ["myosin"] if state.has_myosin() else [],
    "lock": [],
    "count": [],
    "jobs": [],
}


def test_every_benchmark_is_tested_here() -> None:
    assert list(PEERS) == list(command.BENCHMARKS)


@pytest.mark.parametrize("name", PEERS)
def test_a_benchmark_gives_sane_figures(
    name: str,
    tmp_path: pathlib.Path,
    short_folder: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = benchmarking.run(name, file=tmp_path / "out.json", short_folder=short_folder)
    for figure in facts["figures"]:
        assert figure["unit"] in ("s", "1/s", "B")
        # A few entries are fewer bytes than what a server's memory grows by, or not at all.
        assert figure["ours"] > 0 or figure["unit"] == "B"
        assert figure["aim"] is None or isinstance(figure["aim"]["met"], bool)
    with_peers = [peer for peer in facts["figures"][0]["peers"] if peer != "Redis"]
    assert with_peers == PEERS[name]
    assert facts["figures"][0]["what"].split(",")[0] in capsys.readouterr().out


def test_unix_sockets_are_used_where_asked_for(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out.json"
    assert command.main(["get", "--tiny", "--unix", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["socket"] == "unix"


def test_ratios_are_medians_round_by_round() -> None:
    series = rounds.Series({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 4.0]})
    assert series.ratio("a", "b") == 2.0
    assert series.median("a") == 4.0
    assert list(series.without("a")) == ["b"]
    assert rounds.ratio([99.0, 2.0, 3.0], [1.0, 1.0]) == 2.5


@pytest.mark.parametrize(
    ("aim", "met"),
    [
        pytest.param(outcome.Aim(text="", value=1.5, limit=1.5), True, id="at most, just"),
        pytest.param(outcome.Aim(text="", value=1.6, limit=1.5), False, id="at most, not"),
        pytest.param(outcome.Aim(text="", value=0.5, limit=0.5, at_least=True), True, id="least"),
        pytest.param(outcome.Aim(text="", value=0.4, limit=0.5, at_least=True), False, id="less"),
    ],
)
def test_an_aim_is_met_up_to_its_limit(aim: outcome.Aim, met: bool) -> None:
    assert aim.met is met


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.234, "s", "1.23 s"),
        (0.0123, "s", "12.3 ms"),
        (0.000_123, "s", "123 µs"),
        (0.000_000_25, "s", "0.25 µs"),
        (12_345.0, "1/s", "12.3 k/s"),
        (830.0, "1/s", "830 /s"),
        (337.4, "B", "337 B"),
        (None, "s", ""),
    ],
)
def test_figures_are_shown_for_people(value: float | None, unit: str, text: str) -> None:
    assert report.shown(value, unit) == text


def test_the_page_has_the_table_the_command_and_each_aim(tmp_path: pathlib.Path) -> None:
    figures = [
        outcome.Figure(
            what="get, round trip",
            unit="s",
            ours=0.0002,
            peers={"echo": 0.0001},
            original=0.0008,
            aim=outcome.Aim(text="within 1.5 times", value=2.0, limit=1.5),
            note="something",
        )
    ]
    facts: dict[str, Any] = machine.facts(tmp_path)
    run = report.Run(machine=facts, scale=scale.TINY, unix=False, figures=figures)
    page = report.markdown(run, "## What people found\n")
    assert "| get, round trip | 200 µs | 100 µs |  |  | 800 µs |" in page
    assert "- get, round trip: NOT MET: within 1.5 times; it is 2.00." in page
    assert report.COMMAND in page
    assert facts["cpu"] in page
    assert page.endswith("## What people found\n")
    assert bool(facts["redis"]) is (shutil.which("redis-server") is not None)
