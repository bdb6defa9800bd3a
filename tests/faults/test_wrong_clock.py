"""A process's date can be set while durations stay right, and who lacks the library is told so."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from tests.faults import clock_jumps, wrong_clock

TEN_YEARS_S = 315_576_000
#: Prints the date, and the two clocks that must not jump, when it is told to.
CHILD = """
import sys, time
for _ in sys.stdin:
    print(time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)
"""


def ask(child: subprocess.Popen[str]) -> list[float]:
    assert child.stdin is not None
    assert child.stdout is not None
    print(file=child.stdin, flush=True)
    return [float(word) for word in child.stdout.readline().split()]


def is_installed() -> bool:
    try:
        wrong_clock.find()
    except wrong_clock.NotInstalled:
        return False
    return True


@pytest.mark.skipif(not is_installed(), reason=f"no libfaketime. {wrong_clock.HINT}")
def test_the_date_jumps_and_durations_stay_right(tmp_path: pathlib.Path) -> None:
    clock = wrong_clock.WrongClock(tmp_path / "clock")
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env=clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        before = ask(child)
        for ahead_s in (-3_600, TEN_YEARS_S, 0):
            clock.jump(ahead_s)
            date, *durations = ask(child)
            assert abs(date - before[0] - ahead_s) < 60
            assert all(
                0 <= now - then < 60 for now, then in zip(durations, before[1:], strict=True)
            )
        child.communicate()


def test_without_the_library_the_command_says_what_to_install(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> pathlib.Path:
        raise wrong_clock.NotInstalled(f"there is none. {wrong_clock.HINT}")

    with pytest.raises(wrong_clock.NotInstalled, match="apt-get install libfaketime"):
        wrong_clock.find((f"{tmp_path}/*.so",))
    monkeypatch.setattr(wrong_clock, "find", missing)
    monkeypatch.setattr(sys, "argv", ["clock_jumps"])
    assert clock_jumps.main() == 2
    assert "apt-get install libfaketime" in capsys.readouterr().err
