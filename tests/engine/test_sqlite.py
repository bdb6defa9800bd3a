"""What is special to the embedded engine: its file, its lock, commits in groups."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
import sys
import threading
from typing import Any

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import base, sqlite, sqlite_committing
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe
from tests.client.waiting import until
from tests.engine import watched

pytestmark = pytest.mark.anyio

A = P("a")


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "log.sqlite"


async def until_set(event: threading.Event) -> None:
    with anyio.fail_after(30):
        while not event.is_set():
            await anyio.sleep(0.005)


async def test_the_folder_is_made_and_the_file_is_for_its_owner_only(
    tmp_path: pathlib.Path,
) -> None:
    file = tmp_path / "some" / "where" / "log.sqlite"
    async with sqlite.SqliteEngine(file).running(engine_probe.DictReplica()):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(place.name for place in file.parent.iterdir()) == [
        "log.sqlite",
        "log.sqlite.lock",
    ]


async def test_a_second_server_is_told_who_has_the_file(file: pathlib.Path) -> None:
    first, second = sqlite.SqliteEngine(file), sqlite.SqliteEngine(file)
    async with first.running(engine_probe.DictReplica()):
        await engine_probe.Writer(first).set(A, b"1")
        with pytest.raises(errors.StorageBusy) as caught:
            async with second.running(engine_probe.DictReplica()):
                raise AssertionError("two servers on one file")
        assert (caught.value.file, caught.value.owner) == (str(file), f"process {os.getpid()}")
        await engine_probe.Writer(first).set(A, b"2")
    replica = engine_probe.DictReplica()
    async with second.running(replica):
        assert replica.values == {A: b"2"}


async def test_a_server_in_another_process_is_named(file: pathlib.Path) -> None:
    script = (
        "import sys, pathlib; from moat_kv.engine import sqlite_lock;"
        "sqlite_lock.FileLock(pathlib.Path(sys.argv[1])).acquire();"
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(file)]
    with subprocess.Popen(  # noqa: ASYNC220 (a line from it is all that is waited for)
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(errors.StorageBusy, match=f"process {other.pid}"):
            async with sqlite.SqliteEngine(file).running(engine_probe.DictReplica()):
                raise AssertionError("two servers on one file")
        other.kill()
    async with sqlite.SqliteEngine(file).running(engine_probe.DictReplica()):
        pass  # the lock of a process that was killed is free


async def test_a_file_that_is_open_in_sqlite_is_busy(file: pathlib.Path) -> None:
    async with sqlite.SqliteEngine(file).running(engine_probe.DictReplica()):
        pass
    script = (
        "import sys, sqlite3; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN IMMEDIATE');"
        "print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(file)]
    with subprocess.Popen(  # noqa: ASYNC220
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(errors.StorageBusy, match="SQLite"):
            async with sqlite.SqliteEngine(file).running(engine_probe.DictReplica()):
                raise AssertionError("two programs on one file")
        other.kill()


@pytest.mark.parametrize("sync", ["always", 0.02], ids=["always", "relaxed"])
async def test_an_idle_log_writes_nothing(file: pathlib.Path, sync: Any) -> None:
    watching = watched.Watching()
    engine = sqlite.SqliteEngine(file, sync=sync, connect=watching)
    async with engine.running(engine_probe.DictReplica()):
        pass
    before = {place: place.read_bytes() for place in file.parent.iterdir()}
    async with engine.running(engine_probe.DictReplica()):
        opened = len(watching.last.statements)
        await anyio.sleep(0.2)
        assert len(watching.last.statements) == opened
    assert {place: place.read_bytes() for place in file.parent.iterdir()} == before


async def test_what_waits_shares_a_commit(file: pathlib.Path) -> None:
    watching = watched.Watching()
    engine = sqlite.SqliteEngine(file, connect=watching)
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        await writer.set(A, b"0")
        connection = watching.last
        connection.free.clear()
        outcomes: list[base.Outcome] = []
        engine.submit((writer.make(A, b"1"),), outcomes.append)
        await until_set(connection.held)
        # The event loop goes on while a commit is stuck in the disk.
        for number in range(200):
            engine.submit((writer.make(Path(number), b"x"),), outcomes.append)
        await until(lambda: len(engine._committer._under_way) == 2)
        assert outcomes == []
        assert engine.describe()["waiting"] == 200
        connection.free.set()
        await writer.set(A, b"2")
        assert len(outcomes) == 201
        # The second one was made up while the first was stuck, the third afterwards.
        assert engine.describe()["commits"] == 4
        inserts = [sql for sql in connection.statements if sql.startswith("INSERT INTO log")]
        assert [sql.count("(?") for sql in inserts] == [1, 1, 64, 64, 64, 8, 1]


async def test_a_commit_has_a_limit(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_committing, "COMMIT_RECORDS", 10)
    monkeypatch.setattr(sqlite_committing, "COMMIT_BYTES", 1_000)
    engine = sqlite.SqliteEngine(file)
    outcomes: list[base.Outcome] = []
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        for number in range(40):
            engine.submit((writer.make(Path(number), b"x"),), outcomes.append)
        for number in range(3):
            engine.submit((writer.make(Path(number), bytes(1_000)),), outcomes.append)
        await writer.set(A, b"last")
        assert engine.describe()["commits"] == 4 + 3 + 1
    assert len(outcomes) == 43


async def test_time_never_goes_back(file: pathlib.Path) -> None:
    times = iter([100.0, 50.0, 120.0, 119.0])
    engine = sqlite.SqliteEngine(file, clock=lambda: next(times))
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        at = [(await writer.set(A, b"%d" % number)).at for number in range(3)]
    async with engine.running(engine_probe.DictReplica()):
        at.append((await engine_probe.Writer(engine).set(A, b"next")).at)
    assert at == [100.0, 100.0, 120.0, 120.0]


async def test_an_engine_that_does_not_run_takes_nothing(file: pathlib.Path) -> None:
    engine = sqlite.SqliteEngine(file)
    writer = engine_probe.Writer(engine)
    with pytest.raises(RuntimeError, match="not running"):
        engine.submit((writer.make(A, b"1"),), lambda outcome: None)
    async with engine.running(engine_probe.DictReplica()):
        pass
    with pytest.raises(RuntimeError, match="not running"):
        engine.submit((writer.make(A, b"1"),), lambda outcome: None)


async def test_an_engine_runs_once_at_a_time(file: pathlib.Path) -> None:
    engine = sqlite.SqliteEngine(file)
    async with engine.running(engine_probe.DictReplica()):
        with pytest.raises(RuntimeError, match="running already"):
            async with engine.running(engine_probe.DictReplica()):
                raise AssertionError("twice")
        await engine_probe.Writer(engine).set(A, b"1")


async def test_a_start_that_is_cancelled_leaves_the_file_free(file: pathlib.Path) -> None:
    engine = sqlite.SqliteEngine(file)
    async with engine.running(engine_probe.DictReplica()):
        await engine_probe.Writer(engine).set(A, b"1")
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with engine.running(engine_probe.DictReplica()):
            raise AssertionError("cancelled before")
    replica = engine_probe.DictReplica()
    async with sqlite.SqliteEngine(file).running(replica):
        assert replica.values == {A: b"1"}


@pytest.mark.parametrize(
    "options",
    [{"sync": 0}, {"sync": -1.0}, {"sync": float("nan")}, {"history": 0}],
    ids=str,
)
async def test_a_bad_setting_is_refused(file: pathlib.Path, options: dict[str, Any]) -> None:
    with pytest.raises(errors.BadConfig):
        sqlite.SqliteEngine(file, **options)
