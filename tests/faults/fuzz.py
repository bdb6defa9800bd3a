"""Fuzzing of frames and requests: `python -m tests.faults.fuzz --seconds 60`.

Coverage-guided, by atheris (`pip install atheris`; the suite does without it): inputs are fed to
`tests.faults.fuzz_target`, that is to the frame reader, the unpacking of requests and the handling
of a real server's connection. Anything but a proper answer or a named error is a finding: its input
is written to `--findings` and its traceback printed. Exit code 0 if there was none, 1 if there was,
2 if atheris is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

_ROOT = pathlib.Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=pathlib.Path, default=pathlib.Path("fuzz-findings"))
    parser.add_argument("--replay", type=pathlib.Path, help="feed just this file")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        _fuzz(options.child)
        return 0
    if options.replay is not None:
        _replay(options.replay)
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("the fuzzer needs atheris: pip install atheris", file=sys.stderr)
        return 2
    return _watch_over(options)


def _watch_over(options: argparse.Namespace) -> int:
    """Run the fuzzer in a process of its own, for it ends by exiting; tell what it found."""
    options.findings.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        command = [sys.executable, "-m", "tests.faults.fuzz", "--child", corpus]
        command += [f"-max_total_time={options.seconds}", f"-seed={options.seed}"]
        command += ["-max_len=2048", "-rss_limit_mb=2048", "-timeout=30", "-print_final_stats=1"]
        command += [f"-artifact_prefix={options.findings.absolute()}/"]
        result = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
        inputs = len(list(pathlib.Path(corpus).iterdir()))
    said = result.stdout + result.stderr
    runs = re.search(r"number_of_executed_units: (\d+)", said)
    covered = re.findall(r"cov: (\d+)", said)
    if result.returncode:
        print(said[-6_000:])
    print(
        f"{runs[1] if runs else '?'} inputs fed in {options.seconds} s,"
        f" {covered[-1] if covered else '?'} branches covered by {inputs} of them;"
        f" {'a finding' if result.returncode else 'no findings'}"
    )
    if not any(options.findings.iterdir()):
        options.findings.rmdir()
    return 1 if result.returncode else 0


def _fuzz(arguments: list[str]) -> None:
    atheris = importlib.import_module("atheris")

    # What is to be guided by must be imported here first.
    with atheris.instrument_imports(include=["moat_kv"]):
        from tests.faults import fuzz_target
    target = fuzz_target.Target()
    feed: Any = target.feed
    atheris.Setup([sys.argv[0], *arguments], feed)
    atheris.Fuzz()


def _replay(file: pathlib.Path) -> None:
    from tests.faults import fuzz_target

    target = fuzz_target.Target()
    target.feed(file.read_bytes())
    target.close()
    print("no finding")


if __name__ == "__main__":
    sys.exit(main())
