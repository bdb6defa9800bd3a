"""What both commands of the benchmarks have in common: their options, and where figures go."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping


def parser(
    *, prog: str, description: str, benchmarks: Mapping[str, Callable[..., object]], more: str
) -> argparse.ArgumentParser:
    """With the options that both have. `more`: what stands below the list of benchmarks."""
    about = "".join(
        f"  {name:9} {(made.__doc__ or '').splitlines()[0]}\n" for name, made in benchmarks.items()
    )
    made = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"benchmarks:\n{about}  all       Every one of these.\n{more}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--json", metavar="FILE", help="write the figures there; - prints them")
    made.add_argument("--tiny", action="store_true", help="only see whether it works")
    made.add_argument("--rounds", type=int, metavar="N", help="how often they take turns")
    made.add_argument(
        "--folder", metavar="DIR", help="where files are made, on a real disk; a temporary folder"
    )
    return made


def chosen(names: Iterable[str], benchmarks: Mapping[str, object]) -> list[str]:
    return list(benchmarks) if "all" in names else list(names)


def write(json: str, to: str | None, print_table: Callable[[], None]) -> None:
    """The figures as `--json` says: in a file beside the table, or alone for `-`."""
    if to == "-":
        sys.stdout.write(json)
        return
    print_table()
    if to is not None:
        pathlib.Path(to).write_text(json, encoding="utf-8")


def text_of(file: pathlib.Path) -> str:
    """What a file has; nothing if it is not there."""
    return file.read_text(encoding="utf-8") if file.exists() else ""
