"""The figures of a run as JSON, as a table for a terminal, and as the page docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import outcome, scale
from benchmarks.stage import ECHO, REDIS, SQLITE

COLUMNS = ("what", "moat-kv", "echo", "SQLite", "Redis", "MoaT-KV")
COMMAND = "python -m benchmarks all --markdown docs/benchmarks.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What was measured, where, and how much of it."""

    machine: dict[str, Any]
    scale: scale.Scale
    unix: bool
    figures: Sequence[outcome.Figure]

    def as_json(self) -> str:
        facts = {
            "machine": self.machine,
            "scale": dataclasses.asdict(self.scale),
            "socket": "unix" if self.unix else "tcp",
            "figures": [figure.as_json() for figure in self.figures],
        }
        return json.dumps(facts, indent=2) + "\n"


def shown(value: float | None, unit: str) -> str:
    """A figure for people, three digits or so."""
    if value is None:
        return ""
    if unit == "s":
        for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
            if value * factor >= 1:
                return f"{_digits(value * factor)} {name}"
        return f"{_digits(value * 1e6)} µs"
    if unit == "1/s":
        return f"{_digits(value / 1e3)} k/s" if value >= 1e3 else f"{_digits(value)} /s"
    return f"{_digits(value)} {unit}"


def _digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cells(figure: outcome.Figure) -> list[str]:
    """One line of the table, by `COLUMNS`."""
    numbers = [
        figure.ours,
        *(figure.peers.get(name) for name in (ECHO, SQLITE, REDIS)),
        figure.original,
    ]
    return [figure.what, *(shown(number, figure.unit) for number in numbers)]


def print_table(figures: Sequence[outcome.Figure]) -> None:
    """For a terminal, with aims and notes below."""
    console = Console()
    table = Table(*COLUMNS)
    for figure in figures:
        table.add_row(*cells(figure))
    console.print(table)
    for figure in figures:
        if figure.aim is not None:
            console.print(f"{figure.what}: {verdict(figure.aim)}", highlight=False)
        if figure.note:
            console.print(f"{figure.what}: {figure.note}", highlight=False)


def verdict(aim: outcome.Aim) -> str:
    """An aim and what it came to."""
    reached = shown(aim.value, aim.unit) if aim.unit else f"{aim.value:.2f}"
    return f"{'met' if aim.met else 'NOT MET'}: {aim.text}; it is {reached}"


def aims(figures: Sequence[outcome.Figure]) -> list[str]:
    """A line for each that has one."""
    return [f"{each.what}: {verdict(each.aim)}" for each in figures if each.aim is not None]


def notes(figures: Sequence[outcome.Figure]) -> list[str]:
    """A line for each that has one."""
    return [f"{each.what}: {each.note}" for each in figures if each.note]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Its lines; the first column holds words, the others numbers."""
    return [
        "| " + " | ".join(columns) + " |",
        "|---" + "|--:" * (len(columns) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def markdown(run: Run, remarks: str) -> str:
    """The whole page. `remarks`: what a person has to say, kept from the page before."""
    parts = [
        "# How fast, how small\n",
        *_introduction(run),
        *markdown_table(COLUMNS, map(cells, run.figures)),
        "",
        "## Aims\n",
        *(f"- {line}." for line in aims(run.figures)),
        "",
        "## Notes\n",
        *(f"- {line}." for line in notes(run.figures)),
        "",
    ]
    return "\n".join(parts) + remarks


def _introduction(run: Run) -> list[str]:
    machine, sizes = run.machine, run.scale
    redis = f", Redis {machine['redis']} (`appendfsync always`)" if machine["redis"] else ""
    socket = "a Unix socket" if run.unix else "TCP over loopback"
    return [
        f"Made by `{COMMAND}`; `--help` tells of the other benchmarks and options.\n",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"{machine['system']}; Python {machine['python']}, {machine['loop']}, "
        f"msgpack {machine['msgpack']}, SQLite {machine['sqlite']}{redis}; an fsync of 4 KiB takes "
        f"{shown(machine['fsync_s'], 's')}.\n",
        "Server and client are the real ones, each a process of its own, over "
        f"{socket}; the server's engine is SQLite with sync always. Beside them, in the same run: "
        "`echo` is a plain echo server and client written the same way (anyio, msgpack, one "
        "awaited call a request), `SQLite` the same table with the same settings and nobody in "
        "front of it, `Redis` its own server and a client as plain as the echo's. `MoaT-KV` is "
        "what the original took on a machine of this kind, measured once; it keeps nothing on "
        "disk. etcd is beside several servers, in the other part of this page.\n",
        f"Contestants take turns, {sizes.rounds} rounds each; figures are medians over the rounds, "
        "ratios medians of the ratios round by round. An entry is a path of three names with "
        '`{"temp": 21.5, "unit": "C"}`.\n',
    ]
