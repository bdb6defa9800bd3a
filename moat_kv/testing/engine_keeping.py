"""The part of `moat_kv.testing.engine_suite` on keeping: opening again, history, compaction."""

from __future__ import annotations

import random

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import base
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe

A, B, C = P("a"), P("a.b"), P("c")


class Keeping:
    """What is there after opening the log again; history and records."""

    pytestmark = pytest.mark.anyio

    async def test_opening_again_gives_the_same_state(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        first = engine_probe.DictReplica()
        async with engine.running(first):
            writer = engine_probe.Writer(engine)
            for number in range(200):
                value = None if number % 11 == 0 else b"%d" % number
                await writer.set(Path("p", number % 50), value)
            await writer.set(C, b"bound", session="s1", expires_at=4e9)
            epoch, revision = engine.epoch, engine.revision
        engine = open_engine()
        second = engine_probe.DictReplica()
        async with engine.running(second):
            assert (engine.epoch, engine.revision) == (epoch, revision)
            assert second.heads == first.heads
            revs = [record.rev for records in second.applied for record in records]
            assert revs == sorted(record.rev for record in first.heads.values())
            assert (await engine_probe.Writer(engine).set(A, b"next")).rev > revision

    @pytest.mark.parametrize(
        "path",
        [
            Path(),
            Path(True),
            Path(1),
            Path(1.0),
            Path(None, "session", "x"),
            Path(b"bytes", "text", ("t", 1)),
            Path("ü", "", ".", "a b"),
            Path(*["deep"] * 64),
        ],
        ids=["root", "true", "one", "one-point-zero", "system", "mixed", "odd-names", "deep"],
    )
    async def test_any_path_is_kept(self, open_engine: engine_probe.OpenEngine, path: Path) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            record = await engine_probe.Writer(engine).set(path, b"1")
        replica = engine_probe.DictReplica()
        engine = open_engine()
        async with engine.running(replica):
            assert replica.heads == {path: record}
            assert await engine.history(path, limit=2) == [record]

    @pytest.mark.parametrize(
        "value",
        [b"", b"\x00", bytes(range(256)), bytes(1 << 20)],
        ids=["empty", "zero", "all-bytes", "1-MiB"],
    )
    async def test_any_value_is_kept(
        self, open_engine: engine_probe.OpenEngine, value: bytes
    ) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            await engine_probe.Writer(engine).set(A, value)
        replica = engine_probe.DictReplica()
        async with open_engine().running(replica):
            assert replica.values == {A: value}

    async def test_history_gives_the_newest_first(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine(history=10)
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            written = []
            for number in range(6):
                written.append(await writer.set(A, b"%d" % number if number != 3 else None))
                await writer.set(B, b"other")
            written.reverse()
            assert await engine.history(A, limit=100) == written
            assert await engine.history(A, limit=2) == written[:2]
            assert await engine.history(A, limit=2, before=written[2].rev) == written[3:5]
            assert await engine.history(A, limit=2, before=written[-1].rev) == []
            assert await engine.history(C, limit=2) == []
        engine = open_engine(history=10)
        async with engine.running(engine_probe.DictReplica()):
            assert await engine.history(A, limit=100) == written

    async def test_records_come_in_order_from_a_revision(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            outcome = await writer.group(*(writer.make(Path(i), b"1") for i in range(500)))
            assert not isinstance(outcome, errors.MoatKvError)
            written = [*outcome, await writer.set(A, b"1"), await writer.set(A, None)]
            assert await engine_probe.all_records(engine) == written
            assert await engine_probe.all_records(engine, written[400].rev) == written[401:]
            assert await engine_probe.all_records(engine, engine.revision) == []


class Compacting:
    """History limits, tombstones, the floor."""

    pytestmark = pytest.mark.anyio

    async def test_compaction_keeps_the_newest_records_of_a_path(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine(history=3)
        replica = engine_probe.DictReplica()
        async with engine.running(replica):
            writer = engine_probe.Writer(engine)
            written = [await writer.set(A, b"%d" % number) for number in range(20)]
            other = await writer.set(B, b"once")
            assert await engine.compact() == engine.floor == 0
            assert await engine.history(A, limit=100) == written[:-4:-1]
            assert await engine_probe.all_records(engine) == [*written[-3:], other]
            written += [await writer.set(A, b"more") for _ in range(5)]
            await engine.compact()
            assert await engine.history(A, limit=100) == written[:-4:-1]
        assert replica.floor == 0
        again = engine_probe.DictReplica()
        async with open_engine(history=3).running(again):
            assert again.heads == replica.heads

    async def test_a_young_deletion_is_remembered(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine(tombstone_s=3600.0)
        replica = engine_probe.DictReplica()
        async with engine.running(replica):
            writer = engine_probe.Writer(engine)
            await writer.set(A, b"1")
            gone = await writer.set(A, None)
            assert await engine.compact() == 0
            assert replica.heads[A] == gone
        again = engine_probe.DictReplica()
        async with open_engine().running(again):
            assert again.heads[A] == gone

    async def test_an_old_deletion_is_forgotten_and_the_floor_rises(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine(tombstone_s=0.0)
        replica = engine_probe.DictReplica()
        async with engine.running(replica):
            writer = engine_probe.Writer(engine)
            kept = await writer.set(C, b"kept")
            for number in range(5):
                await writer.set(A, b"%d" % number)
            gone = await writer.set(A, None)
            # As soon as the engine is sure that it is old enough.
            with anyio.fail_after(30):
                floor = await engine.compact()
                while floor != gone.rev:
                    await anyio.sleep(0.02)
                    floor = await engine.compact()
            assert engine.floor == replica.floor == gone.rev
            assert replica.heads == {C: kept}
            assert await engine_probe.all_records(engine) == [kept]
            assert await engine.history(A, limit=5) == []
            revision = engine.revision
        engine = open_engine(tombstone_s=0.0)
        again = engine_probe.DictReplica()
        async with engine.running(again):
            assert again.heads == {C: kept}
            assert again.floor == engine.floor == gone.rev
            # The last record is gone; its revision must not come again.
            assert engine.revision == revision >= gone.rev
            assert (await engine_probe.Writer(engine).set(A, b"new", expect=0)).rev > revision

    async def test_a_deletion_that_was_written_over_is_history(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine(tombstone_s=0.0)
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            written = [await writer.set(A, value) for value in (b"1", None, b"2")]
            await anyio.sleep(0.05)
            assert await engine.compact() == 0
            assert await engine.history(A, limit=5) == written[::-1]

    async def test_compaction_beside_writes_loses_nothing(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        chance = random.Random(7)
        engine = open_engine(history=2, tombstone_s=0.0)
        replica = engine_probe.DictReplica()
        async with engine.running(replica), anyio.create_task_group() as tasks:
            writer = engine_probe.Writer(engine)

            async def write() -> None:
                for number in range(150):
                    value = None if chance.random() < 0.3 else b"%d" % number
                    await writer.set(Path("p", chance.randrange(12)), value)
                tasks.cancel_scope.cancel()

            async def compact() -> None:
                while True:
                    await engine.compact()
                    await anyio.sleep(0.001)

            tasks.start_soon(write)
            tasks.start_soon(compact)
        again = engine_probe.DictReplica()
        engine = open_engine(history=2, tombstone_s=0.0)
        async with engine.running(again):
            assert again.values == replica.values
            # A tombstone may have been dropped a moment before the end, on one side only.
            assert again.heads.items() <= replica.heads.items()

    @pytest.mark.parametrize("seed", range(5), ids=lambda seed: f"seed-{seed}")
    async def test_any_run_of_writes_is_what_a_dictionary_says(
        self, open_engine: engine_probe.OpenEngine, seed: int
    ) -> None:
        chance = random.Random(seed)
        history = chance.randint(1, 4)
        model: dict[Path, bytes] = {}
        for _ in range(3):
            engine = open_engine(history=history, tombstone_s=0.0)
            replica = engine_probe.DictReplica()
            async with engine.running(replica):
                assert replica.values == model
                for _ in range(40):
                    await _random_group(chance, engine, replica, model)
                    if chance.random() < 0.1:
                        await engine.compact()
                assert replica.values == model


async def _random_group(
    chance: random.Random,
    engine: base.Engine,
    replica: engine_probe.DictReplica,
    model: dict[Path, bytes],
) -> None:
    """Submit a group that may or may not hold, and have the model follow."""
    writer = engine_probe.Writer(engine)
    chosen = chance.sample([Path("p", i) for i in range(15)], chance.randint(1, 6))
    writes = []
    holds = True
    for path in chosen:
        head = replica.head(path)
        have = head.rev if head is not None and head.value is not None else 0
        expect = chance.choice([None, None, None, have, have + 1])
        holds = holds and expect in (None, have)
        value = chance.choice([None, b"x", b"%d" % chance.randrange(10**6)])
        writes.append(writer.make(path, value, expect=expect, idem=chance.random() < 0.5))
    outcome = await writer.group(*writes)
    assert isinstance(outcome, errors.Conflict) is not holds
    if holds:
        for write in writes:
            if write.value is None:
                model.pop(write.path, None)
            else:
                model[write.path] = write.value
