"""A server's copy: entries may be late, but what the outbox has answered is there for good."""

from __future__ import annotations

import pathlib
import random

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import age, copy_store, local_copy
from moat_kv.engine.copy_store import Pending, State
from moat_kv.entry import Record
from moat_kv.path import P, Path
from moat_kv.testing import powercut
from tests.client import waiting

pytestmark = pytest.mark.anyio

MOMENT = age.Moment("boot", 10.0, 20.0)


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "copy.sqlite"


def record(rev: int, path: Path, value: bytes | None = b"v") -> Record:
    return Record(rev, path, value, 100.0 + rev, "n1:x", rev, None, None)


def pending(path: Path, value: bytes | None, tick: int = 1, base: int = 0) -> Pending:
    return Pending(path, value, base, "n1:x", tick, MOMENT, 30.0)


async def heads(copy: local_copy.LocalCopy) -> list[Record]:
    return [found async for part in copy.heads() for found in part]


async def put(copy: local_copy.LocalCopy, write: Pending) -> errors.MoatKvError | None:
    done = anyio.Event()
    outcome: list[errors.MoatKvError | None] = []

    def kept(error: errors.MoatKvError | None) -> None:
        outcome.append(error)
        done.set()

    copy.put(write, kept)
    with anyio.fail_after(30):
        await done.wait()
    return outcome[0]


def damage(file: pathlib.Path, what: bytes = b"precious") -> None:
    old = file.read_bytes()
    assert what in old
    file.write_bytes(old.replace(what, b"X" * len(what)))


async def test_a_copy_comes_back_as_it_was(file: pathlib.Path) -> None:
    state = State("epoch-1", 7, 0, 107.0)
    everything = [record(3, P("a")), record(5, P("b.c"), b""), record(7, P("b"), None)]
    async with local_copy.LocalCopy(file).running():
        pass  # an empty one is no copy at all
    copy = local_copy.LocalCopy(file)
    async with copy.running():
        assert (copy.state, await heads(copy)) == (State(), [])
        copy.applied([record(1, P("a"), b"old")], State("epoch-1", 1, 0, 101.0))
        copy.applied(everything, state)
    again = local_copy.LocalCopy(file)
    async with again.running():
        assert (again.state, await heads(again)) == (state, everything)


async def test_what_waits_is_written_when_a_server_is_cancelled(file: pathlib.Path) -> None:
    state = State("epoch-1", 3, 0, 107.0)
    copy = local_copy.LocalCopy(file)
    with anyio.CancelScope() as scope:
        async with copy.running():
            write = pending(P("a"), b"v")
            assert await put(copy, write) is None
            copy.drop(write)
            copy.applied([record(3, P("a"))], state)
            scope.cancel()
            await anyio.sleep_forever()
    again = local_copy.LocalCopy(file)
    async with again.running():
        assert (again.state, await heads(again)) == (state, [record(3, P("a"))])
        assert again.outbox == {}


async def test_entries_are_written_while_it_is_open(file: pathlib.Path) -> None:
    copy = local_copy.LocalCopy(file, delay_s=0.01)
    async with copy.running():
        copy.applied([record(1, P("a"))], State("e", 1, 0, 1.0))
        await waiting.until(lambda: b"n1:x" in file.with_name(file.name + "-wal").read_bytes())


async def test_renewed_leases_alone_are_not_worth_a_sync(file: pathlib.Path) -> None:
    copy = local_copy.LocalCopy(file, delay_s=0.0)
    wal = file.with_name(file.name + "-wal")
    async with copy.running():
        copy.applied([record(1, P("a"))], State("e", 1, 0, 1.0))
        await waiting.until(lambda: b"n1:x" in wal.read_bytes())
        before = wal.read_bytes()
        for rev in range(2, 10):
            copy.applied([record(rev, Path(None, "lease", "n2"))], State("e", rev, 0, 1.0))
            await anyio.sleep(0.005)
        assert wal.read_bytes() == before
        copy.applied([record(10, P("b"))], State("e", 10, 0, 1.0))
        await waiting.until(lambda: wal.read_bytes() != before)
    again = local_copy.LocalCopy(file)
    async with again.running():
        assert again.state.revision == 10
        assert [found.rev for found in await heads(again)] == [1, 9, 10]


async def test_deletions_below_the_floor_are_forgotten(file: pathlib.Path) -> None:
    copy = local_copy.LocalCopy(file)
    async with copy.running():
        copy.applied([record(n, Path("n", n), None) for n in range(1, 6)], State("e", 5, 0, 1.0))
        copy.applied([], State("e", 5, 3, 1.0))
    again = local_copy.LocalCopy(file)
    async with again.running():
        assert [found.rev for found in await heads(again)] == [4, 5]
        assert again.state.floor == 3


async def test_starting_anew_keeps_the_outbox(file: pathlib.Path) -> None:
    copy = local_copy.LocalCopy(file)
    async with copy.running():
        copy.applied([record(1, P("a")), record(2, P("b"))], State("e1", 2, 0, 1.0))
        assert await put(copy, pending(P("c"), b"mine")) is None
        copy.restart()
        copy.applied([record(9, P("b"))], State("e2", 9, 0, 1.0))
    again = local_copy.LocalCopy(file)
    async with again.running():
        assert [found.rev for found in await heads(again)] == [9]
        assert again.state.epoch == "e2"
        assert again.outbox == {P("c"): pending(P("c"), b"mine")}


async def test_the_outbox_has_the_newest_write_of_each_path(file: pathlib.Path) -> None:
    copy = local_copy.LocalCopy(file)
    first, second = pending(P("a"), b"1", 1, base=4), pending(P("a"), None, 2, base=4)
    second = second._replace(earlier=(first.id,))
    other = pending(Path("x", 1, (2, None)), b"", 3)
    async with copy.running():
        for write in (first, second, other):
            assert await put(copy, write) is None
        copy.drop(first)  # a newer one is there: no effect
        assert copy.outbox == {P("a"): second, other.path: other}
    again = local_copy.LocalCopy(file)
    async with again.running():
        assert again.outbox == {P("a"): second, other.path: other}
        again.drop(second)
    last = local_copy.LocalCopy(file)
    async with last.running():
        assert last.outbox == {other.path: other}


async def test_what_waits_stays_in_order_whatever_the_date_is(file: pathlib.Path) -> None:
    copy = local_copy.LocalCopy(file)
    # The date is set back while they are written.
    order = [("a", 1, 900.0), ("b", 2, 500.0), ("c", 3, 100.0), ("a", 4, 50.0)]
    writes = [
        pending(P(path), b"v", tick)._replace(made=age.Moment("boot", float(tick), wall))
        for path, tick, wall in order
    ]
    async with copy.running():
        for write in writes[:2]:
            assert await put(copy, write) is None
        kept: list[object] = []
        for write in writes[2:]:
            copy.put(write, kept.append)
        await waiting.until(lambda: len(kept) == 2)
        assert list(copy.outbox.values()) == writes[1:]
    again = local_copy.LocalCopy(file)
    async with again.running():
        assert list(again.outbox.values()) == writes[1:]


async def test_what_the_outbox_answered_survives_power_cuts(tmp_path: pathlib.Path) -> None:
    chance = random.Random(7)
    for seed in range(20):
        file = tmp_path / f"{seed}.sqlite"
        answered: dict[Path, Pending] = {}
        asked: dict[Path, set[Pending]] = {}
        with powercut.SimulatedDisk(seed=seed, survival=0.3) as disk:
            copy = local_copy.LocalCopy(file, connect=disk.connect, delay_s=0.0, retry_s=0.0)
            async with copy.running():
                for tick in range(1, chance.randrange(5, 40)):
                    write = pending(Path("p", tick % 7), b"%d" % tick, tick)
                    asked.setdefault(write.path, set()).add(write)
                    if await put(copy, write) is not None:
                        break
                    answered[write.path] = write
                    asked[write.path] = {write}
                    copy.applied([record(tick, Path("q", tick % 5))], State("e", tick, 0, 1.0))
                    if tick == 4:
                        disk.cut_after(chance.randrange(60))
                disk.cut()
            disk.restore()
        again = local_copy.LocalCopy(file)
        async with again.running():
            for path, write in answered.items():
                assert again.outbox[path] == write or again.outbox[path] in asked[path]
            found = await heads(again)
            assert max((each.rev for each in found), default=0) == again.state.revision


async def test_a_full_disk_refuses_what_it_cannot_keep(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "copy.sqlite"
    with powercut.SimulatedDisk() as disk:
        copy = local_copy.LocalCopy(file, connect=disk.connect, delay_s=0.0, retry_s=0.0)
        async with copy.running():
            assert await put(copy, pending(P("a"), b"1", 1)) is None
            disk.room_bytes = 0
            refused = await put(copy, pending(P("b"), b"x" * 9_000, 2))
            assert isinstance(refused, errors.StorageFailed)
            assert "full" in str(refused)
            disk.room_bytes = None
            assert await put(copy, pending(P("c"), b"3", 3)) is None
            assert set(copy.outbox) == {P("a"), P("c")}
        disk.cut()
        disk.restore()
    again = local_copy.LocalCopy(file)
    async with again.running():
        assert set(again.outbox) == {P("a"), P("c")}


async def test_a_sync_that_fails_loses_nothing_that_is_answered_later(
    tmp_path: pathlib.Path,
) -> None:
    for seed in range(10):
        file = tmp_path / f"{seed}.sqlite"
        with powercut.SimulatedDisk(seed=seed, survival=0.5) as disk:
            copy = local_copy.LocalCopy(file, connect=disk.connect, delay_s=0.0, retry_s=0.0)
            async with copy.running():
                assert await put(copy, pending(P("a"), b"1", 1)) is None
                disk.failing_syncs = 1
                assert isinstance(await put(copy, pending(P("b"), b"2", 2)), errors.StorageFailed)
                assert await put(copy, pending(P("c"), b"3", 3)) is None
                disk.cut()
            disk.restore()
        again = local_copy.LocalCopy(file)
        async with again.running():
            assert {P("a"), P("c")} <= set(again.outbox)


async def test_damage_before_the_end_of_the_write_ahead_log_is_refused(
    tmp_path: pathlib.Path,
) -> None:
    file = tmp_path / "copy.sqlite"
    with powercut.SimulatedDisk() as disk:
        copy = local_copy.LocalCopy(file, connect=disk.connect, delay_s=0.0, retry_s=0.0)
        async with copy.running():
            for tick in range(1, 6):
                assert await put(copy, pending(P("a"), b"precious %d" % tick, tick)) is None
            disk.cut()
        disk.restore()
    damage(file.with_name(file.name + "-wal"), b"precious 2")
    with pytest.raises(errors.StorageDamaged):
        async with local_copy.LocalCopy(file).running():
            pass


async def test_damage_to_the_outbox_is_refused(file: pathlib.Path) -> None:
    copy = local_copy.LocalCopy(file)
    async with copy.running():
        assert await put(copy, pending(P("a"), b"precious", 1)) is None
    damage(file)
    with pytest.raises(errors.StorageDamaged) as caught:
        async with local_copy.LocalCopy(file).running():
            pass
    assert "checksum" in caught.value.reason
    assert str(file) in str(caught.value)


async def test_damage_to_an_entry_is_told_to_whoever_loads_it(file: pathlib.Path) -> None:
    copy = local_copy.LocalCopy(file)
    async with copy.running():
        copy.applied([record(1, P("a"), b"precious")], State("e", 1, 0, 1.0))
    damage(file)
    again = local_copy.LocalCopy(file)
    async with again.running():
        with pytest.raises(errors.StorageDamaged):
            await heads(again)
        again.restart()
        again.applied([record(3, P("b"))], State("e", 3, 0, 1.0))
    last = local_copy.LocalCopy(file)
    async with last.running():
        assert [found.rev for found in await heads(last)] == [3]


async def test_a_second_server_is_told_who_has_the_copy(file: pathlib.Path) -> None:
    async with local_copy.LocalCopy(file).running():
        with pytest.raises(errors.StorageBusy):
            async with local_copy.LocalCopy(file).running():
                pass


async def test_what_is_no_copy_is_refused(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "copy.sqlite"
    file.write_bytes(b"x" * 5_000)
    with pytest.raises(errors.StorageDamaged):
        async with local_copy.LocalCopy(file).running():
            pass
    assert file.read_bytes() == b"x" * 5_000


def test_the_fields_of_a_write_that_waits_survive_a_round_trip() -> None:
    write = Pending(Path("a", 1.5), b"v", 3, "n:i", 9, MOMENT, 1.5, ("n:i:4", "n:i:6"))
    packed, fields = write.path.packed, copy_store._fields(write)
    row = (packed, fields, write.value, copy_store._checksum(packed, fields, write.value))
    assert copy_store._pending_of(row) == write
