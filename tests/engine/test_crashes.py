"""Short forms of the fault commands: kills and power cuts under writing."""

from __future__ import annotations

import functools
import pathlib

import anyio
import pytest

from tests.faults import crash_check, kill_engine, powercut

#: The whole counts are printed by the commands in `tests.faults`.
ROUNDS = 8


@pytest.mark.anyio
async def test_every_answered_write_survives_kill_9(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "log.sqlite"
    numbers = [0] * crash_check.WRITERS
    for _ in range(2):
        killed = functools.partial(kill_engine.killed_writer, file, numbers, 0.2, at_least=40)
        last, _epoch, count = await anyio.to_thread.run_sync(killed)
        assert count > 40
        lost, numbers = await crash_check.check(file, last)
        assert lost == []


@pytest.mark.anyio
async def test_every_answered_write_survives_power_cuts() -> None:
    rounds = await powercut.run(ROUNDS, seed=1)
    assert [line for result in rounds for line in result.faults] == []
    assert sum(result.answered for result in rounds) > 100


@pytest.mark.anyio
async def test_every_answered_write_survives_failing_syncs_and_full_disks() -> None:
    rounds = await powercut.run(ROUNDS, seed=101, faults=True)
    assert [line for result in rounds for line in result.faults] == []
    assert sum(result.answered for result in rounds) > 100
    assert sum(result.refused for result in rounds) > ROUNDS * crash_check.WRITERS


@pytest.mark.anyio
async def test_the_check_sees_loss_where_commits_are_not_synced() -> None:
    """The negative control: what is found with synchronous=NORMAL."""
    rounds = await powercut.run(ROUNDS, seed=1, lazy=True)
    assert sum(bool(result.faults) for result in rounds) >= ROUNDS // 2
