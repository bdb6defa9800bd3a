"""Commits that are made up while another one is on its way to the disk."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import base, sqlite, sqlite_committing
from moat_kv.entry import Guard
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe, powercut
from tests.client.waiting import until
from tests.engine import watched

pytestmark = pytest.mark.anyio

A, B = P("a"), P("b")
ENOUGH = sqlite_committing.NEXT_RECORDS


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "log.sqlite"


@pytest.fixture
def disk() -> Iterator[powercut.SimulatedDisk]:
    with powercut.SimulatedDisk() as disk:
        yield disk


async def until_held(connection: watched.WatchedConnection) -> None:
    with anyio.fail_after(30):
        while not connection.held.is_set():
            await anyio.sleep(0.005)


def inserts(connection: watched.WatchedConnection) -> int:
    return sum(sql.startswith("INSERT INTO log") for sql in connection.statements)


async def test_the_disk_goes_on_with_the_next_commit_while_the_event_loop_is_busy(
    file: pathlib.Path,
) -> None:
    watching = watched.Watching()
    engine = sqlite.SqliteEngine(file, connect=watching)
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        await writer.set(A, b"0")
        connection, before = watching.last, inserts(watching.last)
        connection.free.clear()
        outcomes: list[base.Outcome] = []
        engine.submit((writer.make(A, b"1"),), outcomes.append)
        await until_held(connection)
        for number in range(ENOUGH):
            engine.submit((writer.make(Path(number), b"x"),), outcomes.append)
        await until(lambda: len(engine._committer._under_way) == 2)
        connection.free.set()
        give_up_at = time.monotonic() + 30
        while inserts(connection) < before + 2 and time.monotonic() < give_up_at:
            time.sleep(0.001)  # noqa: ASYNC251  # a busy event loop is what is tested
        assert inserts(connection) == before + 2
        assert outcomes == []
        await writer.set(B, b"2")
        assert len(outcomes) == 1 + ENOUGH


async def test_fewer_writes_wait_for_company_until_the_disk_is_free(file: pathlib.Path) -> None:
    watching = watched.Watching()
    engine = sqlite.SqliteEngine(file, connect=watching)
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        await writer.set(A, b"0")
        connection = watching.last
        connection.free.clear()
        outcomes: list[base.Outcome] = []
        engine.submit((writer.make(A, b"1"),), outcomes.append)
        await until_held(connection)
        for number in range(ENOUGH - 1):
            engine.submit((writer.make(Path(number), b"x"),), outcomes.append)
            await anyio.sleep(0.002)
        connection.free.set()
        await writer.set(B, b"2")
        assert engine.describe()["commits"] <= 4


async def test_what_was_judged_behind_a_commit_that_fails_fails_with_it(
    disk: powercut.SimulatedDisk, file: pathlib.Path
) -> None:
    watching = watched.Watching(disk.connect)
    engine = sqlite.SqliteEngine(file, connect=watching)
    replica = engine_probe.DictReplica()
    async with engine.running(replica):
        writer = engine_probe.Writer(engine)
        kept = await writer.set(A, b"kept")
        connection, before = watching.last, inserts(watching.last)
        connection.free.clear()
        outcomes: list[base.Outcome] = []
        engine.submit((writer.make(A, b"lost"),), outcomes.append)
        await until_held(connection)
        # Judged as if A had its new revision: these hold, and the one after them does not.
        new = kept.rev + 1
        engine.submit((writer.make(A, b"on top", expect=new),), outcomes.append)
        engine.submit((writer.make(B, b"guarded", guards=(Guard(A, new + 1),)),), outcomes.append)
        engine.submit((writer.make(P("c"), b"x", guards=(Guard(A, new),)),), outcomes.append)
        for number in range(ENOUGH):
            engine.submit((writer.make(Path(number), b"x"),), outcomes.append)
        await until(lambda: len(engine._committer._under_way) == 2)
        assert engine.describe()["waiting"] == 3 + ENOUGH
        disk.failing_syncs = 1
        connection.free.set()
        later = await writer.set(B, b"later")
        assert len(outcomes) == 4 + ENOUGH
        assert len({str(outcome) for outcome in outcomes}) == 1
        assert isinstance(outcomes[0], errors.StorageFailed)
        # Of the second commit nothing was tried.
        assert inserts(connection) == before + 2
        assert replica.values == {A: b"kept", B: b"later"}
        assert later.rev > new + ENOUGH
        assert (await writer.set(A, b"next", expect=kept.rev)).rev == later.rev + 1
        records = await engine_probe.all_records(engine)
    assert [(each.path, each.value) for each in records] == [
        (A, b"kept"),
        (B, b"later"),
        (A, b"next"),
    ]
