"""The widget counter, as its README runs it."""

from __future__ import annotations

import os
import pathlib
import sqlite3
import subprocess
import sys

import pytest
from aggregate import widgets

from moat_kv import coord
from moat_kv.testing.server import RunningServer
from tests.state.sharing import until

PLACE = pathlib.Path(__file__).parents[2] / "examples" / "aggregate"


def run(served: RunningServer, folder: pathlib.Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PLACE / "widgets.py"), *words],
        cwd=folder,
        env={**os.environ, "MOAT_KV_URL": served.url},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_three_processes_count_into_one_database(
    served: RunningServer, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--events", "400", "--widgets", "12", "--entries", "10")
    children = [run(served, tmp_path, "count", *options, "--seed", str(n)) for n in range(3)]
    for child in children:
        assert child.communicate(timeout=50)[0] == "400 events taken\n"
    seen = [each for n in range(3) for each in widgets.events(400, 12, n)]
    clicks = sum(each["event_type"] == "clicks" for each in seen)
    assert widgets.main(["report", "--database", str(tmp_path / "widgets.sqlite")]) == 0
    line = f"12 widgets: {1200 - clicks} impressions, {clicks} clicks\n"
    assert capsys.readouterr().out == line


def test_an_execution_that_is_tried_again_counts_once(tmp_path: pathlib.Path) -> None:
    database = str(tmp_path / "w.sqlite")
    spec = {"parent_post_id": 1, "target_post_id": 2}
    with widgets.opened(database) as connection:
        for id_ in ("a", "a", "b"):
            widgets.write(connection, id_, spec, {"clicks": 3})
    assert widgets.totals(database) == (1, 0, 6)


def found(database: str) -> tuple[int, int, int] | None:
    """Its totals; None while it cannot be had."""
    try:
        return widgets.totals(database)
    except sqlite3.OperationalError:
        return None


def test_a_database_that_fails_half_way_is_tried_again(
    served: RunningServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moat_kv.coord.unsettled.FIRST_S", 0.05)
    monkeypatch.setattr(widgets.WidgetUpdate, "path", str(tmp_path / "missing" / "w.sqlite"))
    with coord.Process(served.url) as process:
        stream = widgets.events(10, 1, 1, clicks_only=True)
        assert widgets.count(process, stream, entries=5, init_cache=True) == 10
        with pytest.raises(sqlite3.OperationalError):
            widgets.totals(widgets.WidgetUpdate.path)
        assert len(process.asynchronous.unsettled) <= 1
        (tmp_path / "missing").mkdir()
        until(lambda: found(widgets.WidgetUpdate.path) == (1, 0, 10))
        process.stop()
    assert widgets.totals(widgets.WidgetUpdate.path) == (1, 0, 10)
