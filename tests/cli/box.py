"""A cluster in a box as a user has it: the commands on it, and what is left of it."""

from __future__ import annotations

import json
import pathlib
import time

from tests.cli.processes import LOOK_S, PATIENCE_S, moat


class Box:
    """One cluster, and the commands on it."""

    def __init__(self, place: pathlib.Path) -> None:
        self.place = place
        self.folder = place / "box"
        self.urls: dict[str, str] = {}

    def do(self, *words: str) -> str:
        """What a command on the cluster prints that has to succeed."""
        ended = moat(self.place, "cluster", *words, "--dir", str(self.folder))
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        return ended.stdout

    def refused(self, *words: str) -> tuple[int, str]:
        """The exit code and the one line of one that has not to."""
        ended = moat(self.place, "cluster", *words, "--dir", str(self.folder))
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1, ended.stderr
        return ended.returncode, ended.stderr

    def seen(self) -> dict[str, dict[str, object]]:
        return {each["name"]: each for each in json.loads(self.do("status", "-o", "json"))}

    def data(self, name: str, *words: str, says: str = "") -> str:
        """What a data command prints on that server; `says`: as what it says beside."""
        ended = moat(self.place, "--url", self.urls[name], "data", *words)
        assert (ended.returncode, ended.stderr) == (0, says), ended
        return ended.stdout

    def becomes(self, name: str, path: str, shown: str) -> None:
        """Wait until that server shows this of an entry."""
        deadline = time.monotonic() + PATIENCE_S
        while (seen := self.data(name, path)) != shown:
            assert time.monotonic() < deadline, (name, seen, shown)
            time.sleep(LOOK_S)


def processes_of(folder: pathlib.Path) -> list[str]:
    """The commands of processes that have to do with the folder. Needs /proc, else finds none."""
    found = []
    for each in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_text(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        if str(folder) in words:
            found.append(words.replace("\0", " "))
    return found
