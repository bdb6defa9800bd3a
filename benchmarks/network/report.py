"""The figures of networks as JSON, for a terminal, and as their part of docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import outcome, report
from benchmarks.network.stage import ETCD, NATS, OURS, REDIS

COLUMNS = ("what", OURS, NATS, ETCD, REDIS, f"times {NATS}")
COMMAND = "python -m benchmarks network all --markdown docs/benchmarks.md"
#: Between these is our part of the page; the rest is the other command's.
BEGIN, END = "<!-- network: begin -->\n", "<!-- network: end -->\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What was measured, where, and how much of it."""

    machine: dict[str, Any]
    sizes: dict[str, Any]
    figures: Sequence[outcome.Figure]

    def as_json(self) -> str:
        facts = {
            "machine": self.machine,
            "sizes": self.sizes,
            "figures": [figure.as_json() for figure in self.figures],
        }
        return json.dumps(facts, indent=2) + "\n"


def read(file: str) -> Run:
    """A run that was written with `as_json`."""
    facts = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    figures = []
    for each in facts["figures"]:
        aim, ratio = each.pop("aim"), each.pop("ratio")
        if aim is not None:
            del aim["met"]
        figures.append(
            outcome.Figure(
                **each,
                aim=None if aim is None else outcome.Aim(**aim),
                ratio=None if ratio is None else outcome.Spread(**ratio),
            )
        )
    return Run(machine=facts["machine"], sizes=facts["sizes"], figures=figures)


def joined(runs: Sequence[Run]) -> Run:
    """All figures; of what was measured more than once, the last. Facts are the last run's."""
    figures = {figure.what: figure for run in runs for figure in run.figures}
    return dataclasses.replace(runs[-1], figures=list(figures.values()))


def cells(figure: outcome.Figure) -> list[str]:
    """One line of the table, by `COLUMNS`."""
    numbers = [figure.ours, *(figure.peers.get(name) for name in (NATS, ETCD, REDIS))]
    ratio = figure.ratio
    times = "" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    return [figure.what, *(report.shown(number, figure.unit) for number in numbers), times]


def print_table(figures: Sequence[outcome.Figure]) -> None:
    """For a terminal, with aims and notes below."""
    console = Console()
    table = Table(*COLUMNS)
    for figure in figures:
        table.add_row(*cells(figure))
    console.print(table)
    for line in [*report.aims(figures), *report.notes(figures)]:
        console.print(line, highlight=False)


def into(page: str, part: str) -> str:
    """A page with this part in the place of the one before, or at its end."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    if before and not before.endswith("\n\n"):
        before = before.rstrip("\n") + "\n\n"
    return f"{before}{BEGIN}{part}{END}{after}"


def kept(page: str) -> str:
    """Our part of a page, with its marks; empty if there is none."""
    begin, end = page.find(BEGIN), page.find(END)
    return page[begin : end + len(END)] if 0 <= begin < end else ""


def markdown(run: Run, remarks: str) -> str:
    """Our part. `remarks`: what a person has to say."""
    parts = [
        "# Many servers\n",
        *_introduction(run),
        *report.markdown_table(COLUMNS, map(cells, run.figures)),
        "",
        "## Aims with many servers\n",
        *(f"- {line}." for line in report.aims(run.figures)),
        "",
        "## Notes on many servers\n",
        *(f"- {line}." for line in report.notes(run.figures)),
        "",
    ]
    return "\n".join(parts) + ("\n" + remarks if remarks else "")


def _introduction(run: Run) -> list[str]:
    facts, sizes = run.machine, run.sizes
    names = ("nats-server", "nats-py", "etcd", "aetcd", "redis", "redis-py")
    versions = ", ".join(f"{name} {facts[name]}" for name in names if facts.get(name))
    absent = ""
    if facts["missing"]:
        absent = f" Not installed, and so not in the table: {', '.join(facts['missing'])}."
    return [
        f"Made by `{COMMAND}`; `python -m benchmarks network --help` tells of single benchmarks "
        "and how to put several runs together.\n",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB, "
        f"{facts['system']}; Python {facts['python']}, {facts['loop']}; {versions}; an fsync of "
        f"4 KiB takes {report.shown(facts['fsync_s'], 's')}.{absent}\n",
        "Servers, NATS nodes and the others are real ones, all on this machine, over TCP over "
        f"loopback; all sync every write to the disk. `{NATS}` is a bare nats-py client that "
        "publishes the same messages into a stream with the same settings and waits for each "
        "acknowledgement (or reads them with its ordered consumer), without a server of ours; "
        "etcd is used through aetcd, with as many nodes as there are replicas, Redis through "
        "redis-py, with `appendfsync always` and no replica. With three replicas everybody is "
        "connected to the node that leads, those who look on to another one.\n",
        f"Contestants take turns, {sizes['rounds']} rounds each (what takes long: fewer); figures "
        "are medians over the rounds, ratios medians of the ratios round by round, in brackets "
        "between what half of them are.\n",
    ]
