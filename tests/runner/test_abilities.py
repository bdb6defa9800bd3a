"""What is said of a machine that cannot hold all that a job may do."""

from __future__ import annotations

import logging
import os
import pathlib

import pytest

from moat_kv_runner.children import abilities, cgroups, processes


def test_nothing_serious_is_missing_on_linux() -> None:
    assert [text for level, text in abilities.gaps() if level >= logging.WARNING] == []


def test_gaps_are_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(abilities, "_told", set())
    monkeypatch.setattr(abilities, "_can_reap", lambda: False)
    monkeypatch.setattr(processes, "can_be_listed", lambda: False)
    monkeypatch.setattr(cgroups, "usable_folder", lambda: None)
    caplog.set_level(logging.INFO, abilities.logger.name)
    abilities.tell_gaps()
    abilities.tell_gaps()
    said = [(each.levelname, each.message.partition(":")[0]) for each in caplog.records]
    assert [level for level, _ in said] == ["WARNING", "WARNING", "INFO", "INFO"]
    assert "may outlive the job" in said[0][1]


def test_group_is_made_with_its_limits_and_removed(tmp_path: pathlib.Path) -> None:
    folder = cgroups.usable_folder()
    if folder is None:
        return  # said by `gaps`, which the test above looks at
    assert cgroups.usable_folder() == folder
    # Others may have theirs there.
    assert list(folder.glob(f"{cgroups.PREFIX}{os.getpid()}-*")) == []
