"""Answers before syncing: `sync` in seconds."""

from __future__ import annotations

import pathlib
import types

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import sqlite, sqlite_saving
from moat_kv.entry import Record
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe, powercut
from tests.client.waiting import until
from tests.engine import watched

pytestmark = pytest.mark.anyio

A = P("a")


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "log.sqlite"


async def test_relaxed_saving_answers_first_and_saves_together(
    file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    is_due = anyio.Event()

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)
        await is_due.wait()

    # However slow the machine is, all hundred come within the delay.
    timed = types.SimpleNamespace(Event=anyio.Event, Lock=anyio.Lock, sleep=sleep)
    timed.CancelScope = anyio.CancelScope
    monkeypatch.setattr(sqlite_saving, "anyio", timed)
    watching = watched.Watching()
    engine = sqlite.SqliteEngine(file, sync=0.3, connect=watching)
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        for number in range(100):
            await writer.set(Path(number), b"x")
        assert engine.describe()["unsaved"] == 100
        assert slept == [0.3]
        is_due.set()
        await until(lambda: not engine.describe()["unsaved"])
        inserts = [sql for sql in watching.last.statements if sql.startswith("INSERT INTO log")]
        assert [sql.count("(?") for sql in inserts] == [64, 36]


async def test_relaxed_saving_keeps_the_epoch_over_a_clean_end(file: pathlib.Path) -> None:
    engine = sqlite.SqliteEngine(file, sync=10.0)
    async with engine.running(engine_probe.DictReplica()):
        last = await engine_probe.Writer(engine).set(A, b"1")
        epoch = engine.epoch
    replica = engine_probe.DictReplica()
    async with engine.running(replica):
        assert (engine.epoch, engine.revision) == (epoch, last.rev)
        assert replica.heads == {A: last}


async def cut_off(file: pathlib.Path) -> tuple[str, Record, Record]:
    """The epoch, the last record that was saved, and the last that was answered, of a log whose
    machine lost power.
    """
    with powercut.SimulatedDisk() as disk:
        engine = sqlite.SqliteEngine(file, sync=0.05, connect=disk.connect)
        records: list[Record] = []

        async def write() -> None:
            async with engine.running(engine_probe.DictReplica()):
                writer = engine_probe.Writer(engine)
                records.append(await writer.set(A, b"saved"))
                await until(lambda: not engine.describe()["unsaved"])
                disk.cut()
                records.append(await writer.set(A, b"lost"))

        with pytest.raises(errors.StorageFailed):
            await write()
        disk.restore()
    return engine.epoch, records[0], records[1]


async def test_an_unclean_end_of_relaxed_saving_changes_the_epoch(file: pathlib.Path) -> None:
    epoch, saved, lost = await cut_off(file)
    replica = engine_probe.DictReplica()
    engine = sqlite.SqliteEngine(file, sync=0.05)
    async with engine.running(replica):
        assert engine.epoch != epoch
        changed = engine.epoch
        assert replica.heads == {A: saved}
        assert engine.revision > lost.rev + sqlite_saving.UNSAVED_LIMIT
        following = await engine_probe.Writer(engine).set(A, b"next")
        assert following.rev == lost.rev - 1 + sqlite_saving.SKIPPED_REVISIONS + 1
    engine = sqlite.SqliteEngine(file)
    async with engine.running(engine_probe.DictReplica()):
        assert (engine.epoch, engine.revision) == (changed, following.rev)


async def test_the_new_epoch_stays_though_nothing_is_written_in_it(file: pathlib.Path) -> None:
    epoch, _, lost = await cut_off(file)
    seen = []
    for _ in range(2):
        engine = sqlite.SqliteEngine(file)
        async with engine.running(engine_probe.DictReplica()):
            seen.append((engine.epoch, engine.revision))
    assert seen[0] == seen[1]
    assert seen[0][0] != epoch
    assert seen[0][1] > lost.rev


async def test_reading_sees_what_is_not_saved_yet(file: pathlib.Path) -> None:
    engine = sqlite.SqliteEngine(file, sync=60.0)
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        written = [await writer.set(A, b"%d" % number) for number in range(3)]
        await engine.compact()  # saves
        assert engine.describe()["unsaved"] == 0
        written += [await writer.set(A, b"%d" % number) for number in range(3)]
        assert engine.describe()["unsaved"] == 3
        assert await engine_probe.all_records(engine) == written
        assert await engine_probe.all_records(engine, written[3].rev) == written[4:]
        assert await engine.history(A, limit=10) == written[::-1]
        assert await engine.history(A, limit=4) == written[:1:-1]
        assert await engine.history(A, limit=10, before=written[4].rev) == written[3::-1]


async def test_what_may_be_lost_is_bounded(
    file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_saving, "UNSAVED_LIMIT", 50)
    engine = sqlite.SqliteEngine(file, sync=60.0)
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        for number in range(200):
            await writer.set(Path(number), b"x")
            assert engine.describe()["unsaved"] <= 50
