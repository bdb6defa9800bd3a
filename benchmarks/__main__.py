"""The command: `python -m benchmarks NAME ...`, or `all`; `network ...`: see `network.command`."""

from __future__ import annotations

import argparse
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence

import anyio

from benchmarks import (
    calls,
    coord,
    echo,
    jobs,
    loading,
    machine,
    mirroring,
    outcome,
    peers,
    report,
    state,
    watching,
)
from benchmarks import options as common
from benchmarks import scale as scale_module
from benchmarks.network import command as network_command
from benchmarks.network import report as network_report

Benchmark = Callable[[peers.Place], Awaitable[list[outcome.Figure]]]

BENCHMARKS: dict[str, Benchmark] = {
    "get": calls.get,
    "gets": calls.gets,
    "set": calls.set_,
    "sets": calls.sets,
    "watch": watching.watch,
    "watchers": watching.watchers,
    "load": loading.load,
    "tree": loading.tree,
    "start": loading.start,
    "mirror": mirroring.mirror,
    "state": state.state,
    "lock": coord.lock,
    "count": coord.count,
    "jobs": jobs.jobs,
}

#: What people have found out about the figures; goes to the end of the page.
REMARKS = pathlib.Path(__file__).with_name("remarks.md")


def _parser() -> argparse.ArgumentParser:
    parser = common.parser(
        prog="python -m benchmarks",
        description="Measure the server and client beside plain peers, in turns.",
        benchmarks=BENCHMARKS,
        more="  network   Servers that share a tree, with options of its own: `network --help`.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--markdown", metavar="FILE", help="write the page of docs/ there")
    parser.add_argument("--unix", action="store_true", help="Unix sockets instead of TCP")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code. An aim that is missed is no failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["network"]:
        return network_command.main(arguments[1:])
    options = _parser().parse_args(arguments)
    sizes = scale_module.TINY if options.tiny else scale_module.FULL
    if options.rounds is not None:
        sizes = sizes.with_rounds(options.rounds)
    names = common.chosen(options.names, BENCHMARKS)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="moat-kv-bench-", dir=options.folder))
    try:
        place = peers.Place(folder, sizes, unix=options.unix)
        facts = machine.facts(folder)
        uvloop = {"use_uvloop": echo.has_uvloop()}
        figures = anyio.run(_run, names, place, backend_options=uvloop)
    finally:
        shutil.rmtree(folder)
    run = report.Run(machine=facts, scale=sizes, unix=options.unix, figures=figures)
    common.write(run.as_json(), options.json, lambda: report.print_table(figures))
    if options.markdown is not None:
        page = report.markdown(run, common.text_of(REMARKS))
        file = pathlib.Path(options.markdown)
        network = network_report.kept(common.text_of(file))
        file.write_text(f"{page}\n{network}" if network else page, encoding="utf-8")
    return 0


async def _run(names: Sequence[str], place: peers.Place) -> list[outcome.Figure]:
    figures: list[outcome.Figure] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures += await BENCHMARKS[name](place)
    return figures


if __name__ == "__main__":
    sys.exit(main())
