"""What could not be brought to its end, and is tried again with back-off.

Updates whose `execute` failed, or whose end was refused, are put here by caches and by themselves;
`recovery` takes them when they are due. May be called from any thread.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moat_kv.coord.course import Course

#: Between two tries of the same, in seconds: the first time, at most, and by what it grows.
FIRST_S, LONGEST_S, FACTOR = 1.0, 300.0, 2.0


def wait_s(tries: int) -> float:
    """How long to wait after so many tries have failed, but for chance."""
    return float(min(FIRST_S * FACTOR ** min(tries - 1, 30), LONGEST_S))


class Unsettled:
    """All of a process."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._mutex = threading.Lock()
        self._due: dict[Course, float] = {}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, course: Course) -> None:
        """Have it tried again, later each time."""
        course.tries += 1
        # Those that failed together need not try again together.
        with self._mutex:
            self._due[course] = time.monotonic() + wait_s(course.tries) * random.uniform(0.8, 1.0)
        self._changed()

    def take_due(self) -> list[Course]:
        """Those whose time has come; they are not here any more."""
        now = time.monotonic()
        with self._mutex:
            due = [course for course, at in self._due.items() if at <= now]
            for course in due:
                del self._due[course]
        return due

    def next_s(self) -> float | None:
        """How long until the next one is due; None if there is none."""
        with self._mutex:
            first = min(self._due.values(), default=None)
        return None if first is None else max(0.0, first - time.monotonic())
