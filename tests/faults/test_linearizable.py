"""A few kills under reads and compare-and-sets; `python -m tests.faults.linearizable` does more."""

from __future__ import annotations

import io
import pathlib
import random

import pytest

from tests.faults import history, linearizability, linearizable
from tests.faults.history import Operation, Recorder

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


async def operations_of(folder: pathlib.Path, rounds: int, sync: str) -> list[Operation]:
    recorder = Recorder()
    await linearizable.play(folder, rounds, 7, sync, recorder)
    return recorder.close()


async def test_a_server_that_is_killed_answers_as_one_register(tmp_path: pathlib.Path) -> None:
    operations = await operations_of(tmp_path, 3, "0")
    verdicts = linearizability.check(operations)
    assert [str(verdict) for verdict in verdicts if not verdict.is_fine] == []
    assert len(verdicts) == len(linearizable.KEYS)
    assert sum(one.outcome == "ok" for one in operations) > 200
    assert any(one.outcome == "unknown" for one in operations)
    # (Some lies may have been true while the read was under way.)
    lies = linearizable.with_lies(operations, random.Random(7), share=0.2)
    assert any(verdict.answer == "wrong" for verdict in linearizability.check(lies))


async def test_relaxed_syncing_is_seen_not_to(tmp_path: pathlib.Path) -> None:
    operations = await operations_of(tmp_path, 3, "1s")
    assert any(verdict.answer == "wrong" for verdict in linearizability.check(operations))


async def test_a_record_that_breaks_off_knows_of_what_may_have_happened() -> None:
    file = io.StringIO()
    recorder = Recorder(file)
    recorder.begin("a", "k", "write", value=1)
    recorder.begin("b", "k", "read")
    number = recorder.begin("c", "k", "cas", value=2, expect=0)
    recorder.end(number, "ok", rev=1)
    file.seek(0)
    first, second = history.load(file)
    assert (first.is_open, first.value, first.end) == (True, 1, None)
    assert (second.outcome, second.rev) == ("ok", 1)
    assert [one.number for one in recorder.close()] == [1, 2, 3]
