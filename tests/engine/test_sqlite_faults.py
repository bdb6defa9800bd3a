"""A full disk and failing syncs: no false answer, reads go on, writes resume."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import base, sqlite, sqlite_compact, sqlite_connection, sqlite_open
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe, powercut

pytestmark = pytest.mark.anyio

A, B = P("a"), P("b")


@pytest.fixture
def disk() -> Iterator[powercut.SimulatedDisk]:
    with powercut.SimulatedDisk() as disk:
        yield disk


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "log.sqlite"


class Opened:
    """A running engine, its replica, and a writer."""

    def __init__(self, engine: base.Engine, replica: engine_probe.DictReplica) -> None:
        self.engine = engine
        self.replica = replica
        self.writer = engine_probe.Writer(engine)


@asynccontextmanager
async def opened(engine: base.Engine) -> AsyncIterator[Opened]:
    replica = engine_probe.DictReplica()
    async with engine.running(replica):
        yield Opened(engine, replica)


async def values_in(file: pathlib.Path) -> dict[Path, bytes]:
    """What a server finds that starts on the file."""
    async with opened(sqlite.SqliteEngine(file)) as log:
        return log.replica.values


async def test_a_full_disk_refuses_writes_until_there_is_room(
    disk: powercut.SimulatedDisk, file: pathlib.Path
) -> None:
    async with opened(sqlite.SqliteEngine(file, connect=disk.connect)) as log:
        kept = await log.writer.set(A, b"kept")
        disk.room_bytes = 0
        for _ in range(3):
            with pytest.raises(errors.StorageFailed, match="the disk is full") as caught:
                await log.writer.set(B, bytes(20_000))
            assert caught.value.file == str(file)
        assert log.engine.trouble == "the disk is full"
        # Reads go on, and so does what needs no room.
        assert log.replica.values == {A: b"kept"}
        assert await log.engine.history(A, limit=5) == [kept]
        assert await engine_probe.all_records(log.engine) == [kept]
        with pytest.raises(errors.Conflict):
            await log.writer.set(A, b"x", expect=0)
        assert await log.writer.set(A, b"kept", idem=True) == kept
        disk.room_bytes = None
        resumed = await log.writer.set(B, b"again")
        assert log.engine.trouble is None
        assert resumed.rev > kept.rev
        assert log.engine.revision == resumed.rev
    assert await values_in(file) == {A: b"kept", B: b"again"}


@pytest.mark.parametrize("failures", [1, 2, 3, 4, 8], ids=lambda n: f"{n}-syncs-fail")
async def test_what_a_failed_sync_refused_never_comes_back(
    disk: powercut.SimulatedDisk, file: pathlib.Path, failures: int
) -> None:
    """The refused record lies in the write-ahead log, whole; it must not be taken for good."""
    async with opened(sqlite.SqliteEngine(file, connect=disk.connect)) as log:
        await log.writer.set(A, b"kept")
        disk.failing_syncs = failures
        with pytest.raises(errors.StorageFailed, match="the disk reports an error"):
            await log.writer.set(B, b"refused")
        assert log.engine.trouble is not None
        assert log.replica.values == {A: b"kept"}
        given = [1]
        while log.engine.trouble is not None:
            try:
                given.append((await log.writer.set(A, b"later")).rev)
            except errors.StorageFailed:
                assert disk.has_power
        assert disk.failing_syncs == 0
        records = await engine_probe.all_records(log.engine)
        assert [(r.path, r.value) for r in records] == [(A, b"kept"), (A, b"later")]
        assert [r.rev for r in records] == given
        disk.cut()
    disk.restore()
    assert await values_in(file) == {A: b"later"}


async def test_a_group_refused_by_a_failed_sync_is_found_whole_or_not_at_all(
    disk: powercut.SimulatedDisk, file: pathlib.Path
) -> None:
    async with opened(sqlite.SqliteEngine(file, connect=disk.connect)) as log:
        await log.writer.set(A, b"kept")
        disk.failing_syncs = 1_000
        group = [log.writer.make(Path("g", number), b"x") for number in range(50)]
        assert isinstance(await log.writer.group(*group), errors.StorageFailed)
        # The process dies here, with its writes in the system's cache: the files stay as they are.
    disk.failing_syncs = 0
    values = await values_in(file)
    assert values.pop(A) == b"kept"
    assert len(values) in (0, 50)


class FailingCommit:
    """A connection whose commit of that number meets a sync that fails."""

    def __init__(self, disk: powercut.SimulatedDisk, path: str, number: int) -> None:
        self._disk = disk
        self._connection: sqlite_connection.Connection = disk.connect(path)
        self._left = number

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> sqlite_connection.Cursor:
        if sql == "COMMIT":
            self._left -= 1
            self._disk.failing_syncs = int(self._left == 0)
        return self._connection.execute(sql, parameters)

    def close(self) -> None:
        self._connection.close()


async def started_after_a_failed_sync(
    file: pathlib.Path, cut_after: int, monkeypatch: pytest.MonkeyPatch, *, careless: bool
) -> None:
    """A sync fails, the process dies, the next one starts, and then the power fails.

    Raises if what is found then is not what was there. `careless`: the starting process trusts
    what it finds in the write-ahead log.
    """
    renew_wal = sqlite_open.renew_wal
    values = {Path("g", number): b"2" for number in range(500)}
    # The commit that fails is one of compaction, since that changes pages all over the file, some
    # of them for the second time.
    for name in ("_LEAST_ROWS", "_MOST_ROWS"):
        monkeypatch.setattr(sqlite_compact, name, 200)
    options: dict[str, Any] = {"history": 1, "compact_after": 10**9}
    async with opened(sqlite.SqliteEngine(file, **options)) as log:
        for text in (b"1", b"2"):
            await log.writer.group(*(log.writer.make(path, text) for path in values))
    with powercut.SimulatedDisk() as disk:

        def renew(renewed: pathlib.Path) -> None:
            renew_wal(renewed)
            disk.rewritten(renewed.with_name(renewed.name + "-wal"))

        def failing(path: str) -> sqlite_connection.Connection:
            return FailingCommit(disk, path, 4)

        monkeypatch.setattr(sqlite_open, "renew_wal", (lambda file: None) if careless else renew)
        async with opened(sqlite.SqliteEngine(file, connect=failing, **options)) as log:
            await log.writer.set(A, b"3")
            values[A] = b"3"
            with pytest.raises(errors.StorageFailed):
                await log.engine.compact()
            disk.stopped = True
        disk.stopped = False
        disk.cut_after(cut_after)
        async with opened(sqlite.SqliteEngine(file, connect=disk.connect, **options)) as log:
            assert log.replica.values == values
            disk.cut()
        disk.restore()
    assert await values_in(file) == values


@pytest.mark.parametrize("operations", [0, 1, 2, 3, 5, 8, 13, 60])
async def test_a_start_after_a_failed_sync_survives_a_power_cut(
    file: pathlib.Path, monkeypatch: pytest.MonkeyPatch, operations: int
) -> None:
    await started_after_a_failed_sync(file, operations, monkeypatch, careless=False)


async def test_a_careless_start_after_a_failed_sync_is_caught(
    file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test before."""
    with pytest.raises((errors.StorageDamaged, AssertionError)):
        await started_after_a_failed_sync(file, 60, monkeypatch, careless=True)


async def test_every_group_of_a_failed_commit_is_refused(
    disk: powercut.SimulatedDisk, file: pathlib.Path
) -> None:
    async with opened(sqlite.SqliteEngine(file, connect=disk.connect)) as log:
        await log.writer.set(A, b"kept")
        disk.failing_syncs = 1
        outcomes: list[base.Outcome] = []
        for number in range(5):
            write = log.writer.make(Path("n", number), b"1")
            log.engine.submit((write,), outcomes.append)
        # Judged against the group before it, which does not come about.
        log.engine.submit((log.writer.make(Path("n", 0), b"2", expect=0),), outcomes.append)
        last = await log.writer.group(log.writer.make(B, b"with them"))
        assert [type(outcome) for outcome in (*outcomes, last)] == [errors.StorageFailed] * 7
        assert log.replica.values == {A: b"kept"}
        await log.writer.set(B, b"after")
        assert log.engine.trouble is None
    assert await values_in(file) == {A: b"kept", B: b"after"}


async def test_compaction_on_a_full_disk_says_so_and_writes_go_on_later(
    disk: powercut.SimulatedDisk, file: pathlib.Path
) -> None:
    engine = sqlite.SqliteEngine(file, connect=disk.connect, history=1, compact_after=10**9)
    async with opened(engine) as log:
        for number in range(300):
            await log.writer.set(Path("n", number % 40), b"%d" % number)
        disk.room_bytes = 0
        with pytest.raises(errors.StorageFailed):
            await log.engine.compact()
        disk.room_bytes = None
        await log.engine.compact()
        assert len(await engine_probe.all_records(log.engine)) == 40
        values = log.replica.values
    assert await values_in(file) == values


async def test_a_server_starts_on_a_full_disk_and_reads(
    disk: powercut.SimulatedDisk, file: pathlib.Path
) -> None:
    async with opened(sqlite.SqliteEngine(file, connect=disk.connect)) as log:
        for number in range(50):
            await log.writer.set(Path("n", number), bytes(1_000))
        values = log.replica.values
        disk.cut()  # so that the write-ahead log stays
    disk.restore()
    disk.room_bytes = 0
    async with opened(sqlite.SqliteEngine(file, connect=disk.connect)) as log:
        assert log.replica.values == values
        assert log.engine.trouble == "the disk is full"
        with pytest.raises(errors.StorageFailed):
            await log.writer.set(A, b"1")
        disk.room_bytes = None
        await log.writer.set(A, b"2")
        assert log.engine.trouble is None
    assert await values_in(file) == {**values, A: b"2"}


async def test_relaxed_saving_refuses_writes_once_it_fails(
    disk: powercut.SimulatedDisk, file: pathlib.Path
) -> None:
    engine = sqlite.SqliteEngine(file, connect=disk.connect, sync=0.05)
    async with opened(engine) as log:
        await log.writer.set(A, b"first")
        disk.room_bytes = 0
        answered = await log.writer.set(B, bytes(20_000))
        with anyio.fail_after(30):
            while log.engine.trouble is None:
                await anyio.sleep(0.01)
        with pytest.raises(errors.StorageFailed):
            await log.writer.set(A, b"refused")
        assert log.replica.values == {A: b"first", B: bytes(20_000)}
        assert await log.engine.history(B, limit=5) == [answered]
        disk.room_bytes = None
        await log.writer.set(A, b"second")
        with anyio.fail_after(30):
            while log.engine.trouble is not None or engine.describe()["unsaved"]:
                await anyio.sleep(0.01)
    assert await values_in(file) == {A: b"second", B: bytes(20_000)}


async def test_relaxed_saving_that_fails_at_the_end_is_an_error(
    disk: powercut.SimulatedDisk, file: pathlib.Path
) -> None:
    engine = sqlite.SqliteEngine(file, connect=disk.connect, sync=60.0)

    async def write_and_leave() -> None:
        async with opened(engine) as log:
            await log.writer.set(A, b"1")
            await log.writer.set(B, bytes(20_000))
            disk.room_bytes = 0

    with pytest.raises(errors.StorageFailed, match="the disk is full"):
        await write_and_leave()
    disk.room_bytes = None
    epoch = engine.epoch
    async with opened(sqlite.SqliteEngine(file)) as log:
        assert log.engine.epoch != epoch, "something that was answered is missing"
