"""The command: `python -m benchmarks network NAME ...`, or `all`; and `page`, from former runs."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio

from benchmarks import echo, machine, outcome, peers, scale
from benchmarks import options as common
from benchmarks.network import growing, late, reading, report, rivals, sizes, writing
from moat_kv.testing import nats as testing_nats

Benchmark = Callable[[peers.Place, sizes.Sizes], Awaitable[list[outcome.Figure]]]

BENCHMARKS: dict[str, Benchmark] = {
    "set": writing.set_,
    "sets": writing.sets,
    "seen": writing.seen,
    "cost": writing.cost,
    "newcomer": reading.newcomer,
    "behind": reading.behind,
    "tree": reading.tree,
    "late": late.late,
    "servers": growing.servers,
    "clients": growing.clients,
}

#: What people have found out about the figures; goes to the end of this part of the page.
REMARKS = pathlib.Path(__file__).with_name("remarks.md")


def _parser() -> argparse.ArgumentParser:
    parser = common.parser(
        prog="python -m benchmarks network",
        description="Measure servers that share a tree through NATS, beside others, in turns.",
        benchmarks=BENCHMARKS,
        more="  page      None: the page from the files of former runs (--run).",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*BENCHMARKS, "all", "page"])
    parser.add_argument(
        "--run", metavar="FILE", action="append", default=[], help="figures of a run before, too"
    )
    parser.add_argument(
        "--markdown", metavar="FILE", help="write this part of a page of docs/ there; else kept"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; the exit code. An aim that is missed is no failure."""
    options = _parser().parse_args(arguments)
    size = sizes.TINY if options.tiny else sizes.FULL
    if options.rounds is not None:
        size = size.with_rounds(options.rounds)
    names = common.chosen(options.names, BENCHMARKS)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="moat-kv-bench-", dir=options.folder))
    try:
        facts = _facts(folder)
        place = peers.Place(folder, scale.TINY)
        uvloop = {"use_uvloop": echo.has_uvloop()}
        figures = anyio.run(_run, names, place, size, backend_options=uvloop)
    finally:
        shutil.rmtree(folder)
    run = report.Run(machine=facts, sizes=dataclasses.asdict(size), figures=figures)
    run = report.joined([*map(report.read, options.run), run])
    common.write(run.as_json(), options.json, lambda: report.print_table(run.figures))
    if options.markdown is not None:
        page = pathlib.Path(options.markdown)
        part = report.markdown(run, common.text_of(REMARKS))
        page.write_text(report.into(common.text_of(page), part), encoding="utf-8")
    return 0


def _facts(folder: pathlib.Path) -> dict[str, Any]:
    facts = machine.facts(folder) | rivals.versions()
    return facts | {
        "nats-server": testing_nats.version(),
        "nats-py": importlib.metadata.version("nats-py"),
        "missing": rivals.missing(),
    }


async def _run(names: Sequence[str], place: peers.Place, size: sizes.Sizes) -> list[outcome.Figure]:
    figures: list[outcome.Figure] = []
    for name in names:
        if name != "page":
            print(f"{name} ...", file=sys.stderr, flush=True)
            figures += await BENCHMARKS[name](place, size)
    return figures
