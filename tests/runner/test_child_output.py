"""What children print and log: line by line, bounded, and nobody is held up by it."""

from __future__ import annotations

import io
import logging
import sys
import time

import anyio
import pytest

from moat_kv_runner.children import child_process, reporting
from tests.runner.bench import LIMIT_S, bench

pytestmark = pytest.mark.anyio

KINDS = pytest.mark.parametrize("is_async", [True, None, False], ids=["async", "quick", "thread"])


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child has printed is read to its end, however late this process is to do so."""
    monkeypatch.setattr(child_process, "DRAIN_S", LIMIT_S)


@KINDS
@pytest.mark.usefixtures("patient")
async def test_lines_that_a_child_prints_and_logs_reach_its_runner(
    is_async: bool | None, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    text = """
        import os, subprocess, sys
        print("printed\\nin two lines")
        print(" and more", file=sys.stderr)
        subprocess.run(["echo", "by another program"])
        os.write(1, b"not \\xff utf-8\\nand no end")
        _log.warning("logged\\nin %s lines", 2)
    """
    async with bench("n1", isolate="process") as b:
        await b.job(text, is_async=is_async)
        await b.state()
    seen = capsys.readouterr()
    for line in ("printed", "in two lines", "by another program", "not \\xff utf-8", "and no end"):
        assert line in seen.out.splitlines()
    assert seen.err == " and more\n"
    records = [each for each in caplog.records if each.name.startswith("moat_kv.job.")]
    assert [(each.levelno, each.message) for each in records] == [
        (logging.WARNING, "logged\nin 2 lines")
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("patient")
async def test_terminal_of_a_runner_obeys_no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    async with bench("n1", isolate="process") as b:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        await b.job("import sys\nprint('\\x1b[2J')\nprint('\\x9b', file=sys.stderr)")
        await b.state()
        monkeypatch.undo()
    assert (out.getvalue(), err.getvalue()) == ("\\x1b[2J\n", "\\x9b\n")


FLOOD = {
    "lines": "while True: print('x' * 50)",
    "one-line": "while True: os.write(1, b'x' * 65536)",
    "log": "while True: _log.error('x' * 50)",
}


@pytest.mark.parametrize("case", list(FLOOD))
async def test_flood_is_cut_and_holds_nobody_up(
    case: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    async with bench("n1", isolate="process") as b:
        await b.job("import os\n" + FLOOD[case], path="flood", is_async=None)
        await b.state(lambda state: state.running, path="flood")
        await anyio.sleep(1)
        for number in range(5):
            await b.job("return 1", path=f"other.{number}")
        for number in range(5):
            assert (await b.state(path=f"other.{number}")).result == 1
    seconds = time.monotonic() - began
    seen = len(capsys.readouterr().out.splitlines()) + len(caplog.records)
    assert seen < reporting.BURST_LINES + (seconds + 1) * reporting.LINES_PER_S * 1.2


def test_lines_are_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "BURST_LINES", 3)
    monkeypatch.setattr(reporting, "LINES_PER_S", 0)
    printed: list[str] = []
    logged: list[tuple[int, str, str]] = []
    lines = reporting.Lines(printed.append, lambda *given: logged.append(given))
    lines.feed(b"a" * 5000)
    lines.feed(b"a" * 5000)
    lines.feed(b"rest\nb\n\x1e[30,")
    lines.feed(b'"n","t"]\nlost\nlost')
    lines.end()
    assert printed == ["a" * reporting.LINE_BYTES + " ...", "b"]
    assert logged == [(30, "n", "t"), (30, "", "2 lines of its output were left out")]


def test_line_that_looks_like_a_record_and_is_none_is_printed() -> None:
    printed: list[str] = []
    lines = reporting.Lines(printed.append, lambda *given: None)
    for line in (b"\x1e{", b"\x1e[1]", b'\x1e["1","2","3"]', b"\x1enull"):
        lines.feed(line + b"\n")
    assert len(printed) == 4


class _StoppedClock:
    @staticmethod
    def monotonic() -> float:
        return 100.0


def test_what_comes_too_fast_is_taken_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "time", _StoppedClock)
    allowance = child_process.Allowance(1000, 100)
    assert allowance.pause_s(900) == 0
    assert allowance.pause_s(100) == 0
    assert allowance.pause_s(100) == pytest.approx(1.0)
    assert allowance.pause_s(100) == pytest.approx(2.0)
