"""`python -m tests.tour README.md`; exit code 0: all as printed, 1: a difference, 2: cannot run."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.tour import blocks, place, walk

DEFAULT_PORT = 27586  # what a README's commands use without saying so


def main() -> int:
    parser = argparse.ArgumentParser(prog="tour", description="run a README's commands as printed")
    parser.add_argument("readme", type=Path, nargs="?", default=Path("README.md"))
    parser.add_argument("--limit", type=float, default=60, metavar="SECONDS", help="for one step")
    parser.add_argument(
        "--stop", type=float, default=walk.STOP_S, metavar="SECONDS", help="for what is stopped"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="must be free; 0: none")
    options = parser.parse_args()
    # Being told to end must not leave the tour's programs behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        steps = blocks.parse(options.readme.read_text(encoding="utf-8"))
    except (OSError, blocks.BadReadmeError) as error:
        return _refuse(f"{options.readme}: {error}")
    if options.port and not place.is_free(options.port):
        return _refuse(
            f"something listens on port {options.port}, which the README's server needs; stop it"
        )
    failed = _take_tour(options.readme, steps, limit_s=options.limit, stop_s=options.stop)
    print(f"{len(steps) + 1 - failed} passed, {failed} failed")
    return 1 if failed else 0


def _take_tour(readme: Path, steps: Sequence[blocks.Step], *, limit_s: float, stop_s: float) -> int:
    """Do the steps and tell how each went; how many failed, of the steps and the end."""
    failed = 0
    marker = uuid.uuid4().hex
    base = Path(tempfile.mkdtemp(prefix="tour-"))
    try:
        place.link_all(readme.resolve().parent, base / "work")
        env = place.environment(base / "home", marker)
        way = walk.Walk(env=env, folder=base / "work", limit_s=limit_s, stop_s=stop_s)
        try:
            for step in steps:
                failed += _tell(f"{readme.name}:{step.line}", str(step), way.take(step))
            problems = way.unannounced()
        finally:
            ends = way.close() + place.end_left_running(marker, limit_s=min(stop_s, place.GO_S))
        failed += _tell(readme.name, "the end: all was announced, all has ended", problems + ends)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return failed


def _tell(where: str, what: str, problems: Sequence[str]) -> int:
    print(f"{where:<14} {'FAILED' if problems else 'ok    '} {what}", flush=True)
    for problem in problems:
        print(f"    {problem}", flush=True)
    return 1 if problems else 0


def _refuse(why: str) -> int:
    print(f"tour: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
