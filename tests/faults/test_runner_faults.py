"""One of each fault of runners, and what finds what is wrong; the commands beside this do more.

What `split_runners` does with real networks, `tests/runner/test_parts.py` does with short times.
"""

from __future__ import annotations

import pathlib

import pytest

from tests.faults import beats, failover, frozen_runners
from tests.faults.beats import Note, Write

one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.anyio
@pytest.mark.timeout(180)
@one_loop
async def test_job_whose_process_crashes_is_begun_anew(tmp_path: pathlib.Path) -> None:
    counts = await failover.run(tmp_path, "crash", rounds=2, seed=1)
    assert (len(counts.gaps_s), counts.overlaps, counts.doubles) == (2, 0, [])


@pytest.mark.anyio
@pytest.mark.timeout(180)
@one_loop
async def test_runner_that_wakes_when_its_claims_are_over_writes_nothing(
    tmp_path: pathlib.Path,
) -> None:
    counts = await frozen_runners.run(tmp_path, rounds=1, seed=1)
    assert (counts.frozen, counts.missing, counts.doubles) == (1, 0, [])
    assert counts.writes > 0


def writes(*made: tuple[int, int, str]) -> list[Write]:
    """Each a revision, a fence and a node."""
    return [Write(rev=rev, fence=fence, node=node, run=0) for rev, fence, node in made]


def test_checker_finds_nothing_where_fences_rise() -> None:
    good = writes((10, 5, "a"), (11, 0, "c"), (12, 5, "a"), (13, 9, "b"), (14, 0, "c"))
    assert beats.doubles(good) == []


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(writes((10, 5, "a"), (11, 9, "b"), (12, 5, "a")), id="an-old-fence"),
        pytest.param(writes((10, 5, "a"), (11, 5, "b")), id="two-nodes-of-one-fence"),
        pytest.param(writes((4, 5, "a")), id="before-its-claim"),
    ],
)
def test_checker_finds_doubles(bad: list[Write]) -> None:
    assert len(beats.doubles(bad)) == 1


def test_overlaps_are_measured() -> None:
    signs = [(1, "a", 0.0), (2, "b", 3.0), (1, "a", 4.0), (2, "b", 9.0), (3, "c", 9.5)]
    notes = [
        Note(what="ok", job="j", n=0, fence=0, node=node, pid=1, run=run, at=at)
        for run, node, at in signs
    ]
    assert beats.overlap_s(notes, 0.0, 10.0) == pytest.approx(1.0)
    assert beats.overlap_s(notes, 3.5, 10.0) == pytest.approx(0.5)
    assert beats.overlap_s(notes, 5.0, 10.0) == 0.0
