"""A run of benchmarks with tiny sizes, for the tests of both commands."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from benchmarks import __main__ as command


def run(*words: str, file: pathlib.Path, short_folder: pathlib.Path) -> dict[str, Any]:
    """What the command wrote into the file, when it has left nothing behind."""
    folder = short_folder / "run"
    folder.mkdir()
    arguments = [*words, "--tiny", "--json", str(file), "--folder", str(folder)]
    assert command.main(arguments) == 0
    assert [*folder.iterdir()] == []
    facts: dict[str, Any] = json.loads(file.read_text())
    assert facts["figures"]
    for figure in facts["figures"]:
        assert all(value > 0 for value in figure["peers"].values())
    return facts
