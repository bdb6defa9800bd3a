"""What every engine has to do, as tests that the author of an engine runs with pytest.

Derive a class from `EngineSuite` in a test module, give it an `open_engine` fixture, and have
`anyio_backend` run it on asyncio and trio::

    class TestMyEngine(engine_suite.EngineSuite):
        @pytest.fixture
        def open_engine(self, tmp_path):
            def open_engine(*, history=10, tombstone_s=3600.0):
                return MyEngine(tmp_path / "log", history=history, tombstone_s=tombstone_s)

            return open_engine

Each call must give an engine on the same storage, which no other engine has open then; all calls of
one test ask for the same limits. Needs pytest and anyio's plugin; tests what `moat_kv.engine.base`
states and nothing else.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, Protocol

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import base
from moat_kv.entry import EXISTS, Guard, Record, Write
from moat_kv.path import P, Path

ORIGIN = "suite:1"


class OpenEngine(Protocol):
    """The fixture that an engine's author gives.

    `history` is how many records of a path must be kept, `tombstone_s` the age in seconds at which
    `compact` drops a deletion (0: at once).
    """

    def __call__(self, *, history: int = 10, tombstone_s: float = 3600.0) -> base.Engine: ...


class DictReplica:
    """The least that an engine can be given, checking what it is told."""

    def __init__(self) -> None:
        self.heads: dict[Path, Record] = {}
        #: Every call of `apply`.
        self.applied: list[list[Record]] = []
        self.floor = 0
        self.messages: list[tuple[Path, bytes]] = []
        #: Set by each message; whoever waits puts a new one here.
        self.heard = anyio.Event()
        self._last = 0

    def head(self, path: Path) -> Record | None:
        return self.heads.get(path)

    def apply(self, records: Sequence[Record]) -> None:
        self.applied.append(list(records))
        for record in records:
            assert record.rev > self._last, "revisions must rise"
            self._last = record.rev
            self.heads[record.path] = record

    def compacted(self, floor: int) -> None:
        assert floor >= self.floor, "the floor must not fall"
        self.floor = floor
        for record in list(self.heads.values()):
            if record.value is None and record.rev <= floor:
                del self.heads[record.path]

    def message(self, topic: Path, data: bytes) -> None:
        self.messages.append((topic, data))
        self.heard.set()

    @property
    def values(self) -> dict[Path, bytes]:
        return {path: r.value for path, r in self.heads.items() if r.value is not None}


class Writer:
    """Submits writes to an engine and waits for what becomes of them."""

    def __init__(self, engine: base.Engine) -> None:
        self._engine = engine
        self._tick = 0

    def make(self, path: Path, value: bytes | None, **options: Any) -> Write:
        self._tick += 1
        return Write(path, value, origin=ORIGIN, tick=self._tick, **options)

    async def group(self, *writes: Write) -> base.Outcome:
        """What becomes of an atomic group; 10 s at most."""
        outcomes: list[base.Outcome] = []
        answered = anyio.Event()

        def done(outcome: base.Outcome) -> None:
            outcomes.append(outcome)
            answered.set()

        self._engine.submit(writes, done)
        with anyio.fail_after(10):
            await answered.wait()
        assert len(outcomes) == 1, "a group must be answered once"
        return outcomes[0]

    async def set(self, path: Path, value: bytes | None, **options: Any) -> Record:
        """The record of a single write. Raises what the engine answers."""
        outcome = await self.group(self.make(path, value, **options))
        if isinstance(outcome, errors.MoatKvError):
            raise outcome
        (record,) = outcome
        return record


class _Answers:
    """Collects the outcomes of many groups, in the order in which they are answered."""

    def __init__(self, expected: int) -> None:
        self.outcomes: list[tuple[int, base.Outcome]] = []
        self._expected = expected
        self._complete = anyio.Event()

    def done(self, number: int) -> base.Done:
        def done(outcome: base.Outcome) -> None:
            self.outcomes.append((number, outcome))
            if len(self.outcomes) == self._expected:
                self._complete.set()

        return done

    async def wait(self) -> None:
        with anyio.fail_after(20):
            await self._complete.wait()


async def all_records(engine: base.Engine, since: int = 0) -> list[Record]:
    """Everything that `Engine.records` yields."""
    return [record async for records in engine.records(since) for record in records]


A, B, C = P("a"), P("a.b"), P("c")


class _Basics:
    """A log's beginning, its answers, and what the replica sees."""

    pytestmark = pytest.mark.anyio

    async def test_a_new_log_is_empty(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        replica = DictReplica()
        async with engine.running(replica):
            assert (engine.revision, engine.floor, engine.trouble) == (0, 0, None)
            assert engine.epoch
            assert await all_records(engine) == []
            assert await engine.history(A, limit=5) == []
        assert replica.applied == []

    async def test_a_record_says_what_was_written(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            before = time.time()
            write = writer.make(A, b"\x01", session="s1", expires_at=4e9)
            outcome = await writer.group(write)
            assert not isinstance(outcome, errors.MoatKvError)
            (record,) = outcome
            assert record.rev == engine.revision > 0
            assert (record.path, record.value) == (A, b"\x01")
            assert (record.origin, record.tick) == (ORIGIN, write.tick)
            assert (record.session, record.expires_at) == ("s1", 4e9)
            assert before - 60 <= record.at <= time.time() + 60

    async def test_an_answer_never_comes_within_submit(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            answers = _Answers(2)
            writer = Writer(engine)
            engine.submit((writer.make(A, b"1"),), answers.done(0))
            engine.submit((writer.make(A, b"2", expect=99),), answers.done(1))
            assert answers.outcomes == []
            await answers.wait()

    async def test_groups_enter_and_are_answered_in_order(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        replica = DictReplica()
        async with engine.running(replica):
            writer = Writer(engine)
            answers = _Answers(300)
            for number in range(300):
                path = Path("n", number % 7)
                engine.submit((writer.make(path, b"%d" % number),), answers.done(number))
            await answers.wait()
        assert [number for number, _ in answers.outcomes] == list(range(300))
        revs = [outcome[0].rev for _, outcome in answers.outcomes]  # type: ignore[index]
        assert revs == sorted(set(revs))
        assert replica.values[Path("n", 299 % 7)] == b"299"

    async def test_applied_before_answered(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        replica = DictReplica()
        async with engine.running(replica):
            seen: list[bytes | None] = []
            revisions: list[int] = []
            answered = anyio.Event()

            def done(outcome: base.Outcome) -> None:
                seen.append(replica.heads[A].value)
                revisions.append(engine.revision - replica.heads[A].rev)
                answered.set()

            engine.submit((Writer(engine).make(A, b"1"),), done)
            with anyio.fail_after(10):
                await answered.wait()
        assert (seen, revisions) == ([b"1"], [0])

    async def test_a_group_may_be_submitted_by_an_answer(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            answers = _Answers(1)

            def done(_outcome: base.Outcome) -> None:
                engine.submit((writer.make(B, b"2"),), answers.done(0))

            engine.submit((writer.make(A, b"1"),), done)
            await answers.wait()
            assert len(await all_records(engine)) == 2

    async def test_what_was_submitted_is_finished_on_leaving(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        answers = _Answers(50)
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            for number in range(50):
                engine.submit((writer.make(Path(number), b"1"),), answers.done(number))
        assert len(answers.outcomes) == 50
        assert not any(isinstance(o, errors.MoatKvError) for _, o in answers.outcomes)
        replica = DictReplica()
        async with open_engine().running(replica):
            assert len(replica.values) == 50

    async def test_a_cancelled_server_loses_no_submitted_group(
        self, open_engine: OpenEngine
    ) -> None:
        engine = open_engine()
        answers = _Answers(20)
        with anyio.CancelScope() as scope:
            async with engine.running(DictReplica()):
                writer = Writer(engine)
                for number in range(20):
                    engine.submit((writer.make(Path(number), b"1"),), answers.done(number))
                scope.cancel()
                await anyio.sleep_forever()
        assert len(answers.outcomes) == 20
        replica = DictReplica()
        async with open_engine().running(replica):
            assert len(replica.values) == 20

    async def test_messages_reach_the_replica_and_are_not_stored(
        self, open_engine: OpenEngine
    ) -> None:
        engine = open_engine()
        replica = DictReplica()
        async with engine.running(replica):
            engine.send(A, b"one")
            engine.send(B, b"two")
            with anyio.fail_after(10):
                while len(replica.messages) < 2:
                    await replica.heard.wait()
                    replica.heard = anyio.Event()
            assert replica.messages == [(A, b"one"), (B, b"two")]
            assert await all_records(engine) == []

    async def test_an_engine_describes_itself(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            await Writer(engine).set(A, b"1")
            facts = engine.describe()
        assert isinstance(facts["kind"], str)
        assert isinstance(facts["place"], str)
        assert facts["size_bytes"] > 0


class _Judging:
    """expect, idem, guards, atomic groups."""

    pytestmark = pytest.mark.anyio

    async def test_expect_compares_revisions(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            first = await writer.set(A, b"1", expect=0)
            with pytest.raises(errors.Conflict) as caught:
                await writer.set(A, b"2", expect=0)
            assert (caught.value.path, caught.value.have) == ("a", first.rev)
            second = await writer.set(A, b"2", expect=first.rev)
            with pytest.raises(errors.Conflict):
                await writer.set(A, b"3", expect=first.rev)
            with pytest.raises(errors.Conflict):
                await writer.set(B, b"3", expect=second.rev)
            assert (await all_records(engine)) == [first, second]

    async def test_a_deleted_entry_counts_as_absent(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            first = await writer.set(A, b"1")
            gone = await writer.set(A, None, expect=first.rev)
            assert gone.value is None
            assert gone.rev > first.rev
            with pytest.raises(errors.Conflict) as caught:
                await writer.set(A, b"2", expect=gone.rev)
            assert caught.value.have == 0
            assert (await writer.set(A, b"2", expect=0)).rev > gone.rev

    async def test_of_many_compare_and_sets_one_wins(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            base_rev = (await writer.set(A, b"0")).rev
            answers = _Answers(40)
            for number in range(40):
                write = writer.make(A, b"%d" % number, expect=base_rev)
                engine.submit((write,), answers.done(number))
            await answers.wait()
        won = [n for n, o in answers.outcomes if not isinstance(o, errors.MoatKvError)]
        assert won == [0]

    async def test_idem_makes_no_new_revision(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            first = await writer.set(A, b"1", idem=True)
            again = await writer.set(A, b"1", idem=True)
            assert (again.rev, again.at, again.id) == (first.rev, first.at, first.id)
            assert engine.revision == first.rev
            assert (await writer.set(A, b"2", idem=True)).rev > first.rev
            assert (await writer.set(A, b"2")).rev == engine.revision == first.rev + 2

    async def test_deleting_what_is_not_there_is_no_news(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            assert (await writer.set(A, None)).rev == 0
            await writer.set(A, b"1")
            gone = await writer.set(A, None)
            assert (await writer.set(A, None)).rev == gone.rev == engine.revision

    @pytest.mark.parametrize(
        ("kind", "error"),
        [("guard", errors.GuardFailed), ("fence", errors.StaleFence)],
        ids=["guard", "fence"],
    )
    async def test_a_guard_lets_through_while_its_revision_holds(
        self, open_engine: OpenEngine, kind: str, error: type[errors.GuardFailed]
    ) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            with pytest.raises(error) as caught:
                await writer.set(A, b"1", guards=(Guard(C, 7, kind),))
            assert (caught.value.path, caught.value.expect, caught.value.have) == ("c", 7, 0)
            claim = await writer.set(C, b"claim")
            guards = (Guard(C, claim.rev, kind),)
            await writer.set(A, b"1", guards=guards)
            await writer.set(A, b"2", guards=guards)
            moved = await writer.set(C, b"moved")
            with pytest.raises(error) as caught:
                await writer.set(A, b"3", guards=guards)
            assert type(caught.value) is error
            assert (caught.value.expect, caught.value.have) == (claim.rev, moved.rev)

    async def test_a_session_guard_asks_for_existence_only(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        session = Path(None, "session", "s1")
        guards = (Guard(session, EXISTS, "session"),)
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            with pytest.raises(errors.SessionExpired) as caught:
                await writer.set(A, b"1", guards=guards)
            assert caught.value.session == "s1"
            await writer.set(session, b"1")
            await writer.set(session, b"2")
            await writer.set(A, b"1", guards=guards)
            await writer.set(session, None)
            with pytest.raises(errors.SessionExpired):
                await writer.set(A, b"2", guards=guards)

    async def test_a_group_sees_what_was_submitted_before_it(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            answers = _Answers(3)
            engine.submit((writer.make(C, b"1"),), answers.done(0))
            engine.submit((writer.make(A, b"1", guards=(Guard(C, EXISTS),)),), answers.done(1))
            engine.submit((writer.make(A, b"2", expect=0),), answers.done(2))
            await answers.wait()
        first, second, third = (outcome for _, outcome in answers.outcomes)
        assert not isinstance(first, errors.MoatKvError)
        assert not isinstance(second, errors.MoatKvError)
        assert isinstance(third, errors.Conflict)
        assert third.have == second[0].rev

    async def test_a_group_happens_wholly_or_not_at_all(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        replica = DictReplica()
        async with engine.running(replica):
            writer = Writer(engine)
            await writer.set(B, b"there")
            refused = await writer.group(
                writer.make(A, b"1"), writer.make(B, b"2", expect=0), writer.make(C, b"3")
            )
            assert isinstance(refused, errors.Conflict)
            assert replica.values == {B: b"there"}
            taken = await writer.group(
                writer.make(A, b"1", expect=0), writer.make(B, None), writer.make(C, b"3")
            )
            assert not isinstance(taken, errors.MoatKvError)
            assert [record.path for record in taken] == [A, B, C]
            assert replica.applied[-1] == list(taken)
            assert replica.values == {A: b"1", C: b"3"}

    async def test_a_group_is_applied_in_one_piece(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        replica = DictReplica()
        async with engine.running(replica):
            writer = Writer(engine)
            answers = _Answers(60)
            for number in range(60):
                writes = [writer.make(Path(number, i), b"x") for i in range(1 + number % 90)]
                engine.submit(writes, answers.done(number))
            await answers.wait()
        place = {r.rev: call for call, records in enumerate(replica.applied) for r in records}
        for _, outcome in answers.outcomes:
            assert not isinstance(outcome, errors.MoatKvError)
            assert len({place[record.rev] for record in outcome}) == 1

    async def test_a_group_has_a_limit(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            largest = [writer.make(Path(i), b"1") for i in range(base.BATCH_LIMIT)]
            outcome = await writer.group(*largest)
            assert not isinstance(outcome, errors.MoatKvError)
            assert len(outcome) == base.BATCH_LIMIT
            refused = await writer.group(*largest, writer.make(A, b"1"))
            assert isinstance(refused, errors.BatchTooLarge)
            assert (refused.size, refused.limit) == (base.BATCH_LIMIT + 1, base.BATCH_LIMIT)
            assert engine.revision == base.BATCH_LIMIT


class _Keeping:
    """What is there after opening the log again; history and records."""

    pytestmark = pytest.mark.anyio

    async def test_opening_again_gives_the_same_state(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        first = DictReplica()
        async with engine.running(first):
            writer = Writer(engine)
            for number in range(200):
                value = None if number % 11 == 0 else b"%d" % number
                await writer.set(Path("p", number % 50), value)
            await writer.set(C, b"bound", session="s1", expires_at=4e9)
            epoch, revision = engine.epoch, engine.revision
        engine = open_engine()
        second = DictReplica()
        async with engine.running(second):
            assert (engine.epoch, engine.revision) == (epoch, revision)
            assert second.heads == first.heads
            revs = [record.rev for records in second.applied for record in records]
            assert revs == sorted(record.rev for record in first.heads.values())
            assert (await Writer(engine).set(A, b"next")).rev > revision

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
    async def test_any_path_is_kept(self, open_engine: OpenEngine, path: Path) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            record = await Writer(engine).set(path, b"1")
        replica = DictReplica()
        engine = open_engine()
        async with engine.running(replica):
            assert replica.heads == {path: record}
            assert await engine.history(path, limit=2) == [record]

    @pytest.mark.parametrize(
        "value",
        [b"", b"\x00", bytes(range(256)), bytes(1 << 20)],
        ids=["empty", "zero", "all-bytes", "1-MiB"],
    )
    async def test_any_value_is_kept(self, open_engine: OpenEngine, value: bytes) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            await Writer(engine).set(A, value)
        replica = DictReplica()
        async with open_engine().running(replica):
            assert replica.values == {A: value}

    async def test_history_gives_the_newest_first(self, open_engine: OpenEngine) -> None:
        engine = open_engine(history=10)
        async with engine.running(DictReplica()):
            writer = Writer(engine)
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
        async with engine.running(DictReplica()):
            assert await engine.history(A, limit=100) == written

    async def test_records_come_in_order_from_a_revision(self, open_engine: OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            outcome = await writer.group(*(writer.make(Path(i), b"1") for i in range(500)))
            assert not isinstance(outcome, errors.MoatKvError)
            written = [*outcome, await writer.set(A, b"1"), await writer.set(A, None)]
            assert await all_records(engine) == written
            assert await all_records(engine, written[400].rev) == written[401:]
            assert await all_records(engine, engine.revision) == []


class _Compacting:
    """History limits, tombstones, the floor."""

    pytestmark = pytest.mark.anyio

    async def test_compaction_keeps_the_newest_records_of_a_path(
        self, open_engine: OpenEngine
    ) -> None:
        engine = open_engine(history=3)
        replica = DictReplica()
        async with engine.running(replica):
            writer = Writer(engine)
            written = [await writer.set(A, b"%d" % number) for number in range(20)]
            other = await writer.set(B, b"once")
            assert await engine.compact() == engine.floor == 0
            assert await engine.history(A, limit=100) == written[:-4:-1]
            assert await all_records(engine) == [*written[-3:], other]
            written += [await writer.set(A, b"more") for _ in range(5)]
            await engine.compact()
            assert await engine.history(A, limit=100) == written[:-4:-1]
        assert replica.floor == 0
        again = DictReplica()
        async with open_engine(history=3).running(again):
            assert again.heads == replica.heads

    async def test_a_young_deletion_is_remembered(self, open_engine: OpenEngine) -> None:
        engine = open_engine(tombstone_s=3600.0)
        replica = DictReplica()
        async with engine.running(replica):
            writer = Writer(engine)
            await writer.set(A, b"1")
            gone = await writer.set(A, None)
            assert await engine.compact() == 0
            assert replica.heads[A] == gone
        again = DictReplica()
        async with open_engine().running(again):
            assert again.heads[A] == gone

    async def test_an_old_deletion_is_forgotten_and_the_floor_rises(
        self, open_engine: OpenEngine
    ) -> None:
        engine = open_engine(tombstone_s=0.0)
        replica = DictReplica()
        async with engine.running(replica):
            writer = Writer(engine)
            kept = await writer.set(C, b"kept")
            for number in range(5):
                await writer.set(A, b"%d" % number)
            gone = await writer.set(A, None)
            await anyio.sleep(0.05)
            assert await engine.compact() == engine.floor == replica.floor == gone.rev
            assert replica.heads == {C: kept}
            assert await all_records(engine) == [kept]
            assert await engine.history(A, limit=5) == []
            revision = engine.revision
        engine = open_engine(tombstone_s=0.0)
        again = DictReplica()
        async with engine.running(again):
            assert again.heads == {C: kept}
            assert again.floor == engine.floor == gone.rev
            # The last record is gone; its revision must not come again.
            assert engine.revision == revision == gone.rev
            assert (await Writer(engine).set(A, b"new", expect=0)).rev > gone.rev

    async def test_a_deletion_that_was_written_over_is_history(
        self, open_engine: OpenEngine
    ) -> None:
        engine = open_engine(tombstone_s=0.0)
        async with engine.running(DictReplica()):
            writer = Writer(engine)
            written = [await writer.set(A, value) for value in (b"1", None, b"2")]
            await anyio.sleep(0.05)
            assert await engine.compact() == 0
            assert await engine.history(A, limit=5) == written[::-1]

    async def test_compaction_beside_writes_loses_nothing(self, open_engine: OpenEngine) -> None:
        chance = random.Random(7)
        engine = open_engine(history=2, tombstone_s=0.0)
        replica = DictReplica()
        async with engine.running(replica), anyio.create_task_group() as tasks:
            writer = Writer(engine)

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
        again = DictReplica()
        engine = open_engine(history=2, tombstone_s=0.0)
        async with engine.running(again):
            assert again.values == replica.values
            # A tombstone may have been dropped a moment before the end, on one side only.
            assert again.heads.items() <= replica.heads.items()

    @pytest.mark.parametrize("seed", range(5), ids=lambda seed: f"seed-{seed}")
    async def test_any_run_of_writes_is_what_a_dictionary_says(
        self, open_engine: OpenEngine, seed: int
    ) -> None:
        chance = random.Random(seed)
        history = chance.randint(1, 4)
        model: dict[Path, bytes] = {}
        for _ in range(3):
            engine = open_engine(history=history, tombstone_s=0.0)
            replica = DictReplica()
            async with engine.running(replica):
                assert replica.values == model
                for _ in range(40):
                    await _random_group(chance, engine, replica, model)
                    if chance.random() < 0.1:
                        await engine.compact()
                assert replica.values == model


async def _random_group(
    chance: random.Random, engine: base.Engine, replica: DictReplica, model: dict[Path, bytes]
) -> None:
    """Submit a group that may or may not hold, and have the model follow."""
    writer = Writer(engine)
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


class EngineSuite(_Basics, _Judging, _Keeping, _Compacting):
    """Every test of the contract; see the module's text for how to run it."""

    @pytest.fixture
    def open_engine(self) -> OpenEngine:
        raise NotImplementedError("an engine's tests give this fixture")
