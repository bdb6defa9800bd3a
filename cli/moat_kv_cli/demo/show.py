"""What is on the screen: a live table on a terminal, else a line for each thing that happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from moat_kv_cli import plain
from moat_kv_cli.demo.seen import Seen

if TYPE_CHECKING:
    from rich.console import RenderableType

#: The live table is drawn anew this often a second.
FRAMES = 4
_KINDS = {"at": "one node", "any": "any node", "all": "all nodes"}


class Screen(Protocol):
    """Where the demonstration is shown."""

    #: Somebody looks at it while it changes.
    is_live: bool

    def say(self, text: str) -> None:
        """Tell what happens now."""

    def draw(self, seen: Seen) -> None:
        """Show what the tree says."""


@contextmanager
def opened(*, live: bool | None = None) -> Iterator[Screen]:
    """The screen: `live` or not; None: live on a terminal."""
    if live if live is not None else sys.stdout.isatty():
        with _live() as screen:
            yield screen
    else:
        yield Lines()


class Lines:
    """Plain lines, each with the seconds since the start."""

    is_live = False

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._said: set[str] = set()
        self._last: dict[str, str] = {}

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:5.1f} s  {text}", flush=True)

    def draw(self, seen: Seen) -> None:
        """Say what is new; what comes again and again, such as a reading, is said once."""
        for name, value in seen.sensors.items():
            self._once(f"sensor {name}", f"sensor {name}: {value}")
        for job in seen.jobs():
            where = f" on {job.node}" if job.node else ""
            text = f"job {job.path} ({_KINDS[job.kind]}){where}: {job.word}"
            self._once(text, text)
        if seen.members:
            self._on_change("members", f"group: {', '.join(seen.members)}")
        if seen.group_state:
            self._on_change("state", f"group's state: {seen.group_state}")

    def _once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self.say(text)

    def _on_change(self, what: str, text: str) -> None:
        if self._last.get(what) != text:
            self._last[what] = text
            self.say(text)


@contextmanager
def _live() -> Iterator[Screen]:
    from rich import console, live

    terminal = console.Console(highlight=False)
    with live.Live(console=terminal, refresh_per_second=FRAMES, transient=False) as display:
        yield Table(display)


class Table:
    """A table that is drawn anew in place; what happens stands above it."""

    is_live = True

    def __init__(self, display: Any) -> None:
        self._display = display
        self._began = time.monotonic()
        self._drawn_at = 0.0

    def say(self, text: str) -> None:
        self._display.console.print(f"{time.monotonic() - self._began:5.1f} s  {text}")

    def draw(self, seen: Seen) -> None:
        now = time.monotonic()
        if now - self._drawn_at >= 1 / FRAMES:
            self._drawn_at = now
            self._display.update(picture(seen))


_STYLES = {
    "running": "green",
    "done": "green",
    "failed": "red",
    "cut off": "red",
    "waiting": "yellow",
}
_GROUP_STYLES = {"complete": "green", "partial": "yellow", "detached": "red", "broken": "red"}


def picture(seen: Seen) -> RenderableType:
    """The tables of sensors and of jobs, and the group's state below."""
    from rich import columns, console, table, text

    sensors = table.Table("sensor", "value", title="1-wire bus", min_width=30)
    for name, value in seen.sensors.items():
        sensors.add_row(name, value)
    jobs = table.Table("job", "kind", "node", "state", "result", title="jobs")
    for job in seen.jobs():
        result = "" if job.result is None else plain.inline(job.result)
        word = text.Text(job.word, style=_STYLES.get(job.word, ""))
        jobs.add_row(str(job.path), _KINDS[job.kind], job.node, word, result)
    state = text.Text.assemble(
        "group: ",
        (seen.group_state, _GROUP_STYLES.get(seen.group_state, "")),
        f" ({', '.join(seen.members) or 'nobody'})   radio: {seen.radio}",
    )
    return console.Group(columns.Columns([sensors, jobs]), state)
