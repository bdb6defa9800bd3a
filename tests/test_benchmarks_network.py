"""Each benchmark of networks runs, with tiny sizes, and gives figures that can be true."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import machine, outcome, rounds
from benchmarks.network import command as network_command
from benchmarks.network import report, rivals
from tests import benchmarking

#: Who is beside us in each, etcd and Redis apart.
PEERS: dict[str, list[str]] = {
    "set": ["nats-py"],
    "sets": ["nats-py"],
    "seen": ["nats-py"],
    "cost": ["nats-py"],
    "newcomer": ["nats-py"],
    "behind": ["nats-py"],
    "tree": [],
    "late": [],
    "servers": [],
    "clients": [],
}


def test_every_benchmark_of_networks_is_tested_here() -> None:
    assert list(PEERS) == list(network_command.BENCHMARKS)


@pytest.mark.parametrize("name", PEERS)
def test_a_benchmark_of_networks_gives_sane_figures(
    name: str,
    tmp_path: pathlib.Path,
    short_folder: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "out.json"
    facts = benchmarking.run("network", name, file=file, short_folder=short_folder)
    for figure in facts["figures"]:
        assert figure["unit"] in ("s", "1/s")
        assert figure["ours"] > 0
        ratio = figure["ratio"]
        assert ratio is None or 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    beside = [peer for peer in facts["figures"][0]["peers"] if peer not in ("etcd", "Redis")]
    assert beside == PEERS[name]
    assert facts["figures"][0]["what"].split(",")[0].split()[0] in capsys.readouterr().out
    # The page is made from the file, and a second run of the same takes the first one's place.
    page = tmp_path / "page.md"
    page.write_text("# One server\n")
    arguments = ["network", "page", "--run", str(file), "--run", str(file)]
    assert command.main([*arguments, "--markdown", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# One server\n\n<!-- network: begin -->\n# Many servers\n")
    assert text.count(f"| {facts['figures'][0]['what']} |") == 1


def test_who_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    missing = rivals.missing()
    assert any("etcd-server" in each for each in missing)
    assert any("redis-server" in each for each in missing)


def test_each_part_of_the_page_is_kept_when_the_other_is_made_anew() -> None:
    first = report.into("# One\n", "many\n")
    assert first == "# One\n\n<!-- network: begin -->\nmany\n<!-- network: end -->\n"
    assert report.into(first, "more\n") == first.replace("many", "more")
    assert report.kept(first) == "<!-- network: begin -->\nmany\n<!-- network: end -->\n"
    assert report.kept("# One\n") == ""
    assert report.into(first + "the end\n", "more\n").endswith("end -->\nthe end\n")


def test_a_spread_says_where_half_of_the_rounds_are() -> None:
    assert rounds.spread([2.0], [1.0]) == outcome.Spread(median=2.0, low=2.0, high=2.0)
    found = rounds.spread([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert found == outcome.Spread(median=3.0, low=2.0, high=4.0)


def test_the_page_shows_ratios_aims_and_who_is_missing(tmp_path: pathlib.Path) -> None:
    figure = outcome.Figure(
        what="strict set",
        unit="s",
        ours=0.0012,
        peers={"nats-py": 0.001, "Redis": 0.0005},
        aim=outcome.Aim(text="at most 1.5 times", value=1.2, limit=1.5),
        ratio=outcome.Spread(median=1.2, low=1.1, high=1.3),
        note="something",
    )
    facts: dict[str, Any] = machine.facts(tmp_path) | {"missing": ["etcd (not here)"]}
    run = report.Run(machine=facts, sizes={"rounds": 9}, figures=[figure])
    page = report.markdown(run, "## What people found\n")
    assert "| strict set | 1.20 ms | 1.00 ms |  | 500 µs | 1.20 (1.10 to 1.30) |" in page
    assert "- strict set: met: at most 1.5 times; it is 1.20." in page
    assert "- strict set: something." in page
    assert "Not installed, and so not in the table: etcd (not here)." in page
    assert report.COMMAND in page
    assert page.endswith("\n\n## What people found\n")
    file = tmp_path / "run.json"
    file.write_text(run.as_json())
    assert report.read(str(file)) == run
