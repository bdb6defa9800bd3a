"""A few kills of real runners; `python -m tests.faults.kill_runner` does fifty, and more."""

from __future__ import annotations

import pathlib

import pytest

from tests.faults import kill_runner
from tests.faults.fleet import Note, Step, Trace

#: What a takeover may take here beyond the grace, in seconds: others use the machine too. Both are
#: less than the time to live, which is what a silence would have to last.
MARGIN_S = 7.0


@pytest.mark.anyio
@pytest.mark.timeout(180)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("how", ["kill", "server"])
async def test_a_job_goes_on_and_nothing_is_lost_or_done_twice(
    how: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = await kill_runner.run(tmp_path, how, rounds=1, seed=3, margin_s=MARGIN_S)
    assert good, capsys.readouterr().out


def trace(*steps: tuple[int, int, str], notes: tuple[tuple[str, int, int, str], ...] = ()) -> Trace:
    """Steps (number, fence, node), a second apart, and notes (what, number, fence, node)."""
    return Trace(
        steps=[
            Step(number=number, fence=fence, node=node, rev=100 + index)
            for index, (number, fence, node) in enumerate(steps)
        ],
        notes=[
            Note(what=what, number=number, fence=fence, node=node, at=float(index))
            for index, (what, number, fence, node) in enumerate(notes)
        ],
    )


GOOD = trace(
    (1, 5, "a"),
    (2, 5, "a"),
    (3, 9, "b"),
    notes=(("begin", 0, 5, "a"), ("step", 1, 5, "a"), ("begin", 0, 9, "b"), ("step", 3, 9, "b")),
)


def test_the_checker_finds_nothing_in_a_good_trace() -> None:
    assert (GOOD.runs, GOOD.doubles(), GOOD.overlaps(), GOOD.lost()) == (2, [], [], [])


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(trace((1, 5, "a"), (2, 9, "b"), (3, 5, "a")), id="an-old-fence"),
        pytest.param(trace((1, 5, "a"), (2, 5, "b")), id="two-nodes-of-one-fence"),
        pytest.param(trace((1, 200, "a")), id="before-its-claim"),
    ],
)
def test_the_checker_finds_doubles(bad: Trace) -> None:
    assert len(bad.doubles()) == 1


def test_the_checker_finds_runs_at_the_same_time() -> None:
    notes = (("step", 1, 5, "a"), ("step", 2, 9, "b"), ("step", 3, 5, "a"), ("step", 4, 9, "b"))
    assert len(trace(notes=notes).overlaps()) == 1


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(trace((1, 5, "a"), (3, 5, "a")), id="a-gap"),
        pytest.param(trace((1, 5, "a"), notes=(("step", 2, 5, "a"),)), id="answered-and-not-there"),
    ],
)
def test_the_checker_finds_what_was_lost(bad: Trace) -> None:
    assert len(bad.lost()) == 1
