"""The tamest of each kind of bad script; `python -m tests.faults.zoo` lets all loose."""

from __future__ import annotations

import pathlib

import pytest

from tests.faults import zoo
from tests.faults.beasts import BEASTS, Beast

#: Nothing that fills the machine: how late a loop is cannot be told beside other tests.
TAME = ("segfault", "ignores-SIGTERM", "double-fork-with-setsid", "missing-import", "syntax-error")


#: By when nothing of one is left, beyond the time it has to end, in seconds: it is shared.
GONE_S = 20.0


@pytest.mark.anyio
@pytest.mark.timeout(180)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_bad_scripts_harm_only_themselves_and_are_told_of(tmp_path: pathlib.Path) -> None:
    tame = [each for each in BEASTS if each.name in TAME]
    counts = await zoo.run(tmp_path, tame, 1, calm_s=0.0, gone_s=GONE_S)
    assert [fault for fault in counts.faults if "late by" not in fault] == []
    assert counts.runs == len(TAME)


@pytest.mark.anyio
@pytest.mark.timeout(180)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_zoo_finds_what_is_not_told(tmp_path: pathlib.Path) -> None:
    silent = Beast(name="silent", text="return 1", end="fails", told="something else")
    counts = await zoo.run(tmp_path, [silent], 1, calm_s=0.0)
    assert any("told is None" in fault for fault in counts.faults)


def test_there_are_as_many_kinds_as_names() -> None:
    assert len({beast.name for beast in BEASTS}) == len(BEASTS) >= 26
