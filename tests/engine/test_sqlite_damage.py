"""A file that is damaged, or no log of ours, is refused by name and stays as it is."""

from __future__ import annotations

import contextlib
import pathlib
import random
import shutil
import sqlite3
from collections.abc import Callable

import pytest

from moat_kv import errors
from moat_kv.engine import sqlite, sqlite_bytes
from moat_kv.entry import Record
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe, powercut

pytestmark = pytest.mark.anyio


async def make_log(file: pathlib.Path, *, closed: bool = True) -> dict[Path, Record]:
    """A log with some entries, history and tombstones; what is in it.

    Not closed, it leaves its write-ahead log behind, as a process that was killed does.
    """
    with powercut.SimulatedDisk() as disk:
        replica = engine_probe.DictReplica()
        engine = sqlite.SqliteEngine(file, connect=disk.connect)
        async with engine.running(replica):
            writer = engine_probe.Writer(engine)
            await writer.set(Path("once", engine.revision), b"first")
            for number in range(0, 300, 10):
                await writer.group(
                    *(
                        writer.make(
                            Path("site", f"n{(number + i) % 120}"),
                            b"value %d" % number if (number // 10 + i) % 9 else None,
                            session="s1" if i % 7 == 0 else None,
                            expires_at=4e9 if i % 5 == 0 else None,
                        )
                        for i in range(10)
                    )
                )
            if not closed:
                disk.cut()
        if not closed:
            disk.restore()
    return replica.heads


async def load(file: pathlib.Path, *, full_check: bool = False) -> dict[Path, Record]:
    """What a server finds that starts on the file."""
    replica = engine_probe.DictReplica()
    async with sqlite.SqliteEngine(file, full_check=full_check).running(replica):
        return replica.heads


def content(folder: pathlib.Path) -> dict[str, bytes]:
    """The bytes of every file of the log; the lock file is not part of it."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"}


async def refusal(file: pathlib.Path) -> errors.StorageDamaged:
    """The error with which the file is refused, having checked that it was not touched."""
    before = content(file.parent)
    with pytest.raises(errors.StorageDamaged) as caught:
        await load(file)
    assert content(file.parent) == before
    error = caught.value
    assert error.file == str(file)
    assert str(file) in str(error)
    assert "moat kv log restore" in str(error)
    return error


def _overwritten(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda old: old[:offset] + data + old[offset + len(data) :]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda old: b"", "empty"),
        (lambda old: b"hello\n", "not an SQLite database"),
        (lambda old: b"x" * 8192, "not an SQLite database"),
        (lambda old: old[:50], "not an SQLite database"),
        (_overwritten(68, b"abcd"), "not a log of moat-kv"),
        (_overwritten(60, (99).to_bytes(4, "big")), "version 99"),
        (_overwritten(60, bytes(4)), "version 0"),
    ],
    ids=["empty", "text", "noise", "header-cut", "other-application", "newer", "older"],
)
async def test_what_is_no_log_of_ours_is_refused(
    tmp_path: pathlib.Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    file = tmp_path / "log.sqlite"
    await make_log(file)
    file.write_bytes(change(file.read_bytes()))
    assert reason in (await refusal(file)).reason


async def test_a_database_without_our_tables_is_refused(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "log.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE other (a)")
        connection.execute(f"PRAGMA application_id={sqlite_bytes.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={sqlite_bytes.SCHEMA}")
    connection.close()
    await refusal(file)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9], ids=lambda part: f"{part:.0%}")
async def test_a_truncated_file_is_refused(tmp_path: pathlib.Path, part: float) -> None:
    file = tmp_path / "log.sqlite"
    await make_log(file)
    old = file.read_bytes()
    file.write_bytes(old[: int(len(old) * part)])
    await refusal(file)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "with-write-ahead-log"])
async def test_flipped_bytes_are_refused_or_change_nothing(
    tmp_path: pathlib.Path, closed: bool
) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    there = await make_log(origin / "log.sqlite", closed=closed)
    chance = random.Random(4)
    refused = 0
    for number in range(60):
        folder = tmp_path / str(number)
        shutil.copytree(origin, folder)
        file = folder / "log.sqlite"
        # Of the write-ahead log, leave out the last commit: that looks like a torn one.
        target = file if closed else folder / "log.sqlite-wal"
        data = bytearray(target.read_bytes())
        end = len(data) if closed else len(data) * 9 // 10
        for place in chance.sample(range(end), chance.choice([1, 1, 4, 64])):
            data[place] ^= 1 << chance.randrange(8)
        target.write_bytes(data)
        before = content(folder)
        try:
            assert await load(file) == there
        except errors.StorageDamaged:
            refused += 1
            assert content(folder) == before
    assert refused > 20, "most flips should hit something"


async def test_flips_in_the_list_of_tables_are_refused(tmp_path: pathlib.Path) -> None:
    """A table by another name looks empty to SQLite, and sound."""
    file = tmp_path / "log.sqlite"
    await make_log(file)
    data = file.read_bytes()
    for name in (b"tablemeta", b"tableloglog", b"indextombstonelog"):
        begin = data.index(name)
        for place in range(begin, begin + len(name) + 40, 3):
            file.write_bytes(_overwritten(place, bytes([data[place] ^ 1 << place % 8]))(data))
            await refusal(file)


async def test_what_a_log_says_of_itself_has_a_checksum(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "log.sqlite"
    await make_log(file)
    data = file.read_bytes()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        ((epoch,),) = connection.execute("SELECT value FROM meta WHERE name = 'epoch'")
    place = data.index(epoch.encode())
    file.write_bytes(_overwritten(place, b"x")(data))
    assert "says of itself" in (await refusal(file)).reason


@pytest.mark.parametrize("prev", [1, 40], ids=["another's-newest", "a-later-one"])
async def test_a_row_that_hides_another_is_found(tmp_path: pathlib.Path, prev: int) -> None:
    """A start reads the newest rows only; a wrong `prev` in an older one must not hide one."""
    file = tmp_path / "log.sqlite"
    await make_log(file)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE log SET prev = ? WHERE rev = 30", (prev,))
        connection.commit()
    assert "record 30" in (await refusal(file)).reason


async def test_every_byte_of_a_row_counts(tmp_path: pathlib.Path) -> None:
    """SQLite itself does not notice when what a row holds has changed."""
    file = tmp_path / "log.sqlite"
    await make_log(file)
    data = file.read_bytes()
    place = data.rindex(b"value 290")
    for offset in (0, 8):
        file.write_bytes(_overwritten(place + offset, b"X")(data))
        assert "checksum" in (await refusal(file)).reason


async def test_a_damaged_file_with_a_write_ahead_log_keeps_it(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "log.sqlite"
    await make_log(file)
    there = await make_log(file, closed=False)
    assert (tmp_path / "log.sqlite-wal").stat().st_size > 0
    whole = content(tmp_path)
    # In a page that the write-ahead log does not hold, and in a row that is still the newest.
    damaged = whole["log.sqlite"].replace(b"first", b"worst")
    assert damaged != whole["log.sqlite"]
    file.write_bytes(damaged)
    assert "checksum" in (await refusal(file)).reason
    for name, old in whole.items():
        (tmp_path / name).write_bytes(old)
    assert await load(file) == there


async def test_a_file_system_without_hard_links_will_do(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: pathlib.Path, target: pathlib.Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(pathlib.Path, "hardlink_to", refuse)
    file = tmp_path / "log.sqlite"
    there = await make_log(file, closed=False)
    assert await load(file) == there
    assert await load(file) == there


async def test_a_torn_last_commit_is_no_damage(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "log.sqlite"
    there = await make_log(file, closed=False)
    wal = tmp_path / "log.sqlite-wal"
    wal.write_bytes(wal.read_bytes()[:-100])
    found = await load(file)
    assert found
    assert len(found) <= len(there)


async def test_a_write_ahead_log_without_its_file_is_refused(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "log.sqlite"
    await make_log(file, closed=False)
    file.unlink()
    assert "write-ahead log" in (await refusal(file)).reason


async def test_an_interrupted_start_leaves_nothing_in_the_way(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "log.sqlite"
    (tmp_path / "log.sqlite.new").write_bytes(b"half")
    (tmp_path / "log.sqlite.new-journal").write_bytes(b"half")
    assert await load(file) == {}
    await make_log(file)
    (tmp_path / "log.sqlite.check").write_bytes(b"left over")
    assert await load(file) != {}


async def test_a_full_check_finds_what_loading_does_not_read(tmp_path: pathlib.Path) -> None:
    """An index that leads to a wrong row is seen by the full check alone."""
    file = tmp_path / "log.sqlite"
    there = await make_log(file)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        ((page_bytes,),) = connection.execute("PRAGMA page_size")
        ((page,),) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'tombstone'"
        )
    data = bytearray(file.read_bytes())
    data[page * page_bytes - 1] ^= 1  # in the first entry, the number of its row
    file.write_bytes(data)
    assert await load(file) == there
    with pytest.raises(errors.StorageDamaged):
        await load(file, full_check=True)


async def test_damaged_history_is_an_error_for_its_reader_only(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "log.sqlite"
    engine = sqlite.SqliteEngine(file)
    async with engine.running(engine_probe.DictReplica()):
        writer = engine_probe.Writer(engine)
        await writer.set(P("a"), b"old value")
        await writer.set(P("a"), b"new value")
    data = file.read_bytes()
    file.write_bytes(data.replace(b"old value", b"odd value"))
    replica = engine_probe.DictReplica()
    async with engine.running(replica):
        assert replica.values == {P("a"): b"new value"}
        with pytest.raises(errors.StorageDamaged, match="checksum"):
            await engine.history(P("a"), limit=5)
        assert (await engine_probe.Writer(engine).set(P("b"), b"1")).rev == 3


async def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(errors.StorageFailed, match="file"):
        await load(tmp_path / "file" / "log.sqlite")
