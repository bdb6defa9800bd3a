"""A wrong date for single processes: libfaketime, whose wall clock another process sets.

Durations stay right (the monotonic clock, and the one that counts suspended time, are left alone),
as when somebody sets a machine's date. Used by `clock_jumps`. Linux only.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

HINT = "Debian, Ubuntu: apt-get install libfaketime"
#: Where distributions put it; MT: for programs with threads.
PLACES = (
    "/usr/lib/*/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
)


class NotInstalled(RuntimeError):
    """There is no libfaketime here; the text says what to install."""


def find(places: Sequence[str] = PLACES) -> pathlib.Path:
    """Where it is. Raises NotInstalled."""
    if not sys.platform.startswith("linux"):
        raise NotInstalled(f"setting the clock of one process needs Linux, this is {sys.platform}")
    for place in places:
        for found in pathlib.Path("/").glob(place.removeprefix("/")):
            return found
    raise NotInstalled(f"there is no libfaketime here. {HINT}")


class WrongClock:
    """The wall clock of whatever runs with `environment`. `file` is made, and read by it."""

    def __init__(self, file: pathlib.Path) -> None:
        self._library = find()
        self._file = file
        self.ahead_s = 0.0
        self.jump(0.0)

    @property
    def environment(self) -> dict[str, str]:
        """What the process needs in its environment. Its children have the same clock."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def jump(self, ahead_s: float) -> None:
        """From now on it is so far ahead of the right time, in seconds; negative: behind."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_s:+.0f}\n")
        new.replace(self._file)
        self.ahead_s = ahead_s
