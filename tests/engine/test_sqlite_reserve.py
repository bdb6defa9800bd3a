"""Room that is kept back, and what it is spent on when the disk is full."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import base, sqlite, sqlite_reserve
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe, powercut

A, B = P("a"), P("b")
MIB = 1 << 20


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "log.sqlite"


@pytest.fixture
def disk() -> Iterator[powercut.SimulatedDisk]:
    with powercut.SimulatedDisk() as disk:
        yield disk


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Sets what the file system says: its size, and what is free, in MiB."""

    def told(total: int, free: int) -> None:
        facts = os.statvfs_result(
            (4096, 4096, total * 256, free * 256, free * 256, 0, 0, 0, 0, 255)
        )
        monkeypatch.setattr(os, "statvfs", lambda _: facts)

    return told


def test_a_reserve_takes_room_only_where_enough_is_free(
    file: pathlib.Path, room: Callable[[int, int], None]
) -> None:
    place = file.with_name("log.sqlite.reserve")
    reserve = sqlite_reserve.Reserve(file)
    room(1_000, 31)
    assert not reserve.take(spare=2)
    assert not place.exists()
    room(1_000, 32)
    assert reserve.take(spare=2)
    assert place.stat().st_blocks * 512 >= sqlite_reserve.SIZE_BYTES
    assert reserve.release()
    assert not place.exists()
    assert not reserve.release()
    room(12, 12)
    assert reserve.take()
    assert place.stat().st_size == 3 * MIB


def test_a_reserve_that_was_left_behind_is_adopted_if_it_is_whole(
    file: pathlib.Path, room: Callable[[int, int], None]
) -> None:
    room(12, 12)
    place = file.with_name("log.sqlite.reserve")
    place.write_bytes(b"x" * 1000)
    reserve = sqlite_reserve.Reserve(file)
    reserve.adopt()
    assert not reserve.held
    assert reserve.take()
    after = sqlite_reserve.Reserve(file)
    after.adopt()
    assert after.held


@pytest.mark.anyio
async def test_a_log_has_a_reserve_from_its_first_write_until_it_is_closed(
    file: pathlib.Path,
) -> None:
    place = file.with_name("log.sqlite.reserve")
    engine = sqlite.SqliteEngine(file)
    async with engine.running(engine_probe.DictReplica()):
        assert not place.exists()
        await engine_probe.Writer(engine).set(A, b"1")
        assert place.exists()
    assert not place.exists()


@pytest.mark.anyio
async def test_deletions_beside_values_that_fail_have_a_try_of_their_own(
    disk: powercut.SimulatedDisk, file: pathlib.Path
) -> None:
    engine = sqlite.SqliteEngine(file, connect=disk.connect)
    replica = engine_probe.DictReplica()
    async with engine.running(replica):
        writer = engine_probe.Writer(engine)
        await writer.set(A, b"1")
        await writer.set(B, b"1")
        disk.failing_syncs = 1
        outcomes: dict[str, base.Outcome] = {}
        finished = anyio.Event()
        for name, write in (
            ("first", writer.make(Path("n"), b"1")),
            ("deletion", writer.make(A, None)),
            ("second", writer.make(Path("m"), b"1")),
            ("expecting", writer.make(B, None, expect=99)),
        ):

            def done(outcome: base.Outcome, name: str = name) -> None:
                outcomes[name] = outcome
                if len(outcomes) == 4:
                    finished.set()

            engine.submit((write,), done)
        with anyio.fail_after(30):
            await finished.wait()
        assert isinstance(outcomes["first"], errors.StorageFailed)
        assert isinstance(outcomes["second"], errors.StorageFailed)
        assert isinstance(outcomes["expecting"], errors.Conflict)
        deleted = outcomes["deletion"]
        assert not isinstance(deleted, errors.MoatKvError)
        assert deleted[0].path == A
        assert replica.values == {B: b"1"}
        await writer.set(A, b"2")
        assert engine.trouble is None
    replica = engine_probe.DictReplica()
    async with sqlite.SqliteEngine(file).running(replica):
        assert replica.values == {A: b"2", B: b"1"}


@pytest.mark.anyio
async def test_what_was_deleted_to_make_room_takes_its_earlier_versions_along(
    disk: powercut.SimulatedDisk, file: pathlib.Path
) -> None:
    engine = sqlite.SqliteEngine(file, connect=disk.connect)
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        for path in (A, B):
            await writer.set(path, bytes(9_000))
        await writer.group(writer.make(A, None))
        disk.room_bytes = 0
        with pytest.raises(errors.StorageFailed):
            await writer.set(Path("n"), bytes(9_000))
        assert isinstance(await writer.group(writer.make(B, None)), errors.StorageFailed)
        disk.room_bytes = 3_000_000
        outcome = await writer.group(writer.make(B, None))
        assert not isinstance(outcome, errors.MoatKvError)
        with anyio.fail_after(30):
            while len(await engine.history(B, limit=9)) > 1 or engine.trouble is not None:
                await anyio.sleep(0.02)
        # Deleted before the disk was full.
        assert [each.value for each in await engine.history(A, limit=9)] == [None, bytes(9_000)]
        await writer.set(B, b"again")
        assert [each.value for each in await engine.history(B, limit=9)] == [b"again", None]
