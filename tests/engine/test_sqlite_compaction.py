"""Dropping history and deletions from the file, beside its writers."""

from __future__ import annotations

import os
import pathlib
import sqlite3

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import base, sqlite
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe
from tests.engine import watched

pytestmark = pytest.mark.anyio

A = P("a")


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "log.sqlite"


def size_of(file: pathlib.Path) -> int:
    return file.stat().st_size


async def test_compaction_runs_by_itself_and_rests_when_nothing_is_written(
    file: pathlib.Path,
) -> None:
    watching = watched.Watching()
    engine = sqlite.SqliteEngine(file, history=2, compact_after=100, connect=watching)
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        for number in range(250):
            await writer.set(Path("n", number % 10), b"%d" % number)
        with anyio.fail_after(30):
            while engine.describe()["records"] > 10 * 2 + 100:
                await anyio.sleep(0.01)
        statements, same = 0, 0
        with anyio.fail_after(30):
            # The pass goes on for as long as the machine takes for it; then nothing comes.
            while same < 10:
                await anyio.sleep(0.02)
                rests = not engine._compactor._working.locked()
                is_same = rests and len(watching.last.statements) == statements
                same = same + 1 if is_same else 0
                statements = len(watching.last.statements)
        kept = len(await engine_probe.all_records(engine))
        assert kept == engine.describe()["records"]


async def test_what_gathered_before_a_restart_is_compacted_after(file: pathlib.Path) -> None:
    engine = sqlite.SqliteEngine(file, history=1, compact_after=10**9)
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        for number in range(100):
            await writer.set(A, b"%d" % number)
    engine = sqlite.SqliteEngine(file, history=1, compact_after=50)
    async with engine.running(engine_probe.DictReplica()):
        with anyio.fail_after(30):
            while engine.describe()["records"] > 1:
                await anyio.sleep(0.01)
        assert len(await engine_probe.all_records(engine)) == 1


async def test_the_file_shrinks_after_much_was_dropped(file: pathlib.Path) -> None:
    engine = sqlite.SqliteEngine(file, history=1, compact_after=10**9)
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        for _ in range(3):
            await writer.group(*(writer.make(Path(i), os.urandom(7_000)) for i in range(400)))
    before = size_of(file)
    async with engine.running(engine_probe.DictReplica()):
        await engine.compact()
    assert before > 8_000_000
    assert size_of(file) < before * 0.8
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_writes_are_answered_while_compaction_goes_on(file: pathlib.Path) -> None:
    watching = watched.Watching()
    engine = sqlite.SqliteEngine(file, history=1, compact_after=10**9, connect=watching)
    async with engine.running(engine_probe.DictReplica()), anyio.create_task_group() as tasks:
        writer = engine_probe.Writer(engine)
        for number in range(20):
            await writer.group(*(writer.make(Path("n", i), b"%d" % number) for i in range(1_000)))
        connection, compacted = watching.last, anyio.Event()

        async def compact() -> None:
            await engine.compact()
            compacted.set()

        # However fast the disk and slow the machine: this write was asked for during one slice, and
        # there are some ten after it, each of which has to be asked for in the event loop.
        connection.free.clear()
        tasks.start_soon(compact)
        with anyio.fail_after(30):
            while not connection.held.is_set():
                await anyio.sleep(0.005)
        outcomes: list[base.Outcome] = []
        answered = anyio.Event()

        def done(outcome: base.Outcome) -> None:
            outcomes.append(outcome)
            answered.set()

        engine.submit((writer.make(A, b"x"),), done)
        await anyio.sleep(0.01)
        connection.free.set()
        with anyio.fail_after(30):
            await answered.wait()
        assert not compacted.is_set()
        assert not isinstance(outcomes[0], errors.MoatKvError)
        with anyio.fail_after(30):
            await compacted.wait()
        assert len(await engine_probe.all_records(engine)) == 1_000 + 1
