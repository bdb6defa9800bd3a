"""The part of `moat_kv.testing.engine_suite` on writing: answers, order, judging, atomic groups."""

from __future__ import annotations

import time

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import base
from moat_kv.entry import EXISTS, Guard
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe

A, B, C = P("a"), P("a.b"), P("c")


class Answering:
    """A log's beginning, its answers, and what the replica sees."""

    pytestmark = pytest.mark.anyio

    async def test_a_new_log_is_empty(self, open_engine: engine_probe.OpenEngine) -> None:
        engine = open_engine()
        replica = engine_probe.DictReplica()
        async with engine.running(replica):
            assert (engine.revision, engine.floor, engine.trouble) == (0, 0, None)
            assert engine.epoch
            assert await engine_probe.all_records(engine) == []
            assert await engine.history(A, limit=5) == []
        assert replica.applied == []

    async def test_a_record_says_what_was_written(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            before = time.time()
            write = writer.make(A, b"\x01", session="s1", expires_at=4e9)
            outcome = await writer.group(write)
            assert not isinstance(outcome, errors.MoatKvError)
            (record,) = outcome
            assert record.rev == engine.revision > 0
            assert (record.path, record.value) == (A, b"\x01")
            assert (record.origin, record.tick) == (engine_probe.ORIGIN, write.tick)
            assert (record.session, record.expires_at) == ("s1", 4e9)
            assert before - 60 <= record.at <= time.time() + 60

    async def test_an_answer_never_comes_within_submit(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            answers = engine_probe.Answers(2)
            writer = engine_probe.Writer(engine)
            engine.submit((writer.make(A, b"1"),), answers.done(0))
            engine.submit((writer.make(A, b"2", expect=99),), answers.done(1))
            assert answers.outcomes == []
            await answers.wait()

    async def test_groups_enter_and_are_answered_in_order(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        replica = engine_probe.DictReplica()
        async with engine.running(replica):
            writer = engine_probe.Writer(engine)
            answers = engine_probe.Answers(300)
            for number in range(300):
                path = Path("n", number % 7)
                engine.submit((writer.make(path, b"%d" % number),), answers.done(number))
            await answers.wait()
        assert [number for number, _ in answers.outcomes] == list(range(300))
        revs = [outcome[0].rev for _, outcome in answers.outcomes]  # type: ignore[index]
        assert revs == sorted(set(revs))
        assert replica.values[Path("n", 299 % 7)] == b"299"

    async def test_applied_before_answered(self, open_engine: engine_probe.OpenEngine) -> None:
        engine = open_engine()
        replica = engine_probe.DictReplica()
        async with engine.running(replica):
            seen: list[bytes | None] = []
            revisions: list[int] = []
            answered = anyio.Event()

            def done(outcome: base.Outcome) -> None:
                seen.append(replica.heads[A].value)
                revisions.append(engine.revision - replica.heads[A].rev)
                answered.set()

            engine.submit((engine_probe.Writer(engine).make(A, b"1"),), done)
            with anyio.fail_after(30):
                await answered.wait()
        assert (seen, revisions) == ([b"1"], [0])

    async def test_a_group_may_be_submitted_by_an_answer(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            answers = engine_probe.Answers(1)

            def done(_outcome: base.Outcome) -> None:
                engine.submit((writer.make(B, b"2"),), answers.done(0))

            engine.submit((writer.make(A, b"1"),), done)
            await answers.wait()
            assert len(await engine_probe.all_records(engine)) == 2

    async def test_what_was_submitted_is_finished_on_leaving(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        answers = engine_probe.Answers(50)
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            for number in range(50):
                engine.submit((writer.make(Path(number), b"1"),), answers.done(number))
        assert len(answers.outcomes) == 50
        assert not any(isinstance(o, errors.MoatKvError) for _, o in answers.outcomes)
        replica = engine_probe.DictReplica()
        async with open_engine().running(replica):
            assert len(replica.values) == 50

    async def test_a_cancelled_server_loses_no_submitted_group(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        answers = engine_probe.Answers(20)
        with anyio.CancelScope() as scope:
            async with engine.running(engine_probe.DictReplica()):
                writer = engine_probe.Writer(engine)
                for number in range(20):
                    engine.submit((writer.make(Path(number), b"1"),), answers.done(number))
                scope.cancel()
                await anyio.sleep_forever()
        assert len(answers.outcomes) == 20
        replica = engine_probe.DictReplica()
        async with open_engine().running(replica):
            assert len(replica.values) == 20

    async def test_messages_reach_the_replica_and_are_not_stored(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        replica = engine_probe.DictReplica()
        async with engine.running(replica):
            engine.send(A, b"one")
            engine.send(B, b"two")
            with anyio.fail_after(30):
                while len(replica.messages) < 2:
                    await replica.heard.wait()
                    replica.heard = anyio.Event()
            assert replica.messages == [(A, b"one"), (B, b"two")]
            assert await engine_probe.all_records(engine) == []

    async def test_an_engine_describes_itself(self, open_engine: engine_probe.OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            await engine_probe.Writer(engine).set(A, b"1")
            facts = engine.describe()
        assert isinstance(facts["kind"], str)
        assert isinstance(facts["place"], str)
        assert facts["size_bytes"] > 0


class Judging:
    """expect, idem, guards, atomic groups."""

    pytestmark = pytest.mark.anyio

    async def test_expect_compares_revisions(self, open_engine: engine_probe.OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            first = await writer.set(A, b"1", expect=0)
            with pytest.raises(errors.Conflict) as caught:
                await writer.set(A, b"2", expect=0)
            assert (caught.value.path, caught.value.have) == ("a", first.rev)
            second = await writer.set(A, b"2", expect=first.rev)
            with pytest.raises(errors.Conflict):
                await writer.set(A, b"3", expect=first.rev)
            with pytest.raises(errors.Conflict):
                await writer.set(B, b"3", expect=second.rev)
            assert (await engine_probe.all_records(engine)) == [first, second]

    async def test_a_deleted_entry_counts_as_absent(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            first = await writer.set(A, b"1")
            gone = await writer.set(A, None, expect=first.rev)
            assert gone.value is None
            assert gone.rev > first.rev
            with pytest.raises(errors.Conflict) as caught:
                await writer.set(A, b"2", expect=gone.rev)
            assert caught.value.have == 0
            assert (await writer.set(A, b"2", expect=0)).rev > gone.rev

    async def test_of_many_compare_and_sets_one_wins(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            base_rev = (await writer.set(A, b"0")).rev
            answers = engine_probe.Answers(40)
            for number in range(40):
                write = writer.make(A, b"%d" % number, expect=base_rev)
                engine.submit((write,), answers.done(number))
            await answers.wait()
        won = [n for n, o in answers.outcomes if not isinstance(o, errors.MoatKvError)]
        assert won == [0]

    async def test_idem_makes_no_new_revision(self, open_engine: engine_probe.OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            first = await writer.set(A, b"1", idem=True)
            again = await writer.set(A, b"1", idem=True)
            assert (again.rev, again.at, again.id) == (first.rev, first.at, first.id)
            assert engine.revision == first.rev
            assert (await writer.set(A, b"2", idem=True)).rev > first.rev
            assert (await writer.set(A, b"2")).rev == engine.revision == first.rev + 2

    async def test_deleting_what_is_not_there_is_no_news(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
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
        self, open_engine: engine_probe.OpenEngine, kind: str, error: type[errors.GuardFailed]
    ) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
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

    async def test_a_session_guard_asks_for_existence_only(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        session = Path(None, "session", "s1")
        guards = (Guard(session, EXISTS, "session"),)
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            with pytest.raises(errors.SessionExpired) as caught:
                await writer.set(A, b"1", guards=guards)
            assert caught.value.session == "s1"
            await writer.set(session, b"1")
            await writer.set(session, b"2")
            await writer.set(A, b"1", guards=guards)
            await writer.set(session, None)
            with pytest.raises(errors.SessionExpired):
                await writer.set(A, b"2", guards=guards)

    async def test_a_group_sees_what_was_submitted_before_it(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            answers = engine_probe.Answers(3)
            engine.submit((writer.make(C, b"1"),), answers.done(0))
            engine.submit((writer.make(A, b"1", guards=(Guard(C, EXISTS),)),), answers.done(1))
            engine.submit((writer.make(A, b"2", expect=0),), answers.done(2))
            await answers.wait()
        first, second, third = (outcome for _, outcome in answers.outcomes)
        assert not isinstance(first, errors.MoatKvError)
        assert not isinstance(second, errors.MoatKvError)
        assert isinstance(third, errors.Conflict)
        assert third.have == second[0].rev

    async def test_a_group_happens_wholly_or_not_at_all(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        replica = engine_probe.DictReplica()
        async with engine.running(replica):
            writer = engine_probe.Writer(engine)
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

    async def test_a_group_is_applied_in_one_piece(
        self, open_engine: engine_probe.OpenEngine
    ) -> None:
        engine = open_engine()
        replica = engine_probe.DictReplica()
        async with engine.running(replica):
            writer = engine_probe.Writer(engine)
            answers = engine_probe.Answers(60)
            for number in range(60):
                writes = [writer.make(Path(number, i), b"x") for i in range(1 + number % 90)]
                engine.submit(writes, answers.done(number))
            await answers.wait()
        place = {r.rev: call for call, records in enumerate(replica.applied) for r in records}
        for _, outcome in answers.outcomes:
            assert not isinstance(outcome, errors.MoatKvError)
            assert len({place[record.rev] for record in outcome}) == 1

    async def test_a_group_has_a_limit(self, open_engine: engine_probe.OpenEngine) -> None:
        engine = open_engine()
        async with engine.running(engine_probe.DictReplica()):
            writer = engine_probe.Writer(engine)
            largest = [writer.make(Path(i), b"1") for i in range(base.BATCH_LIMIT)]
            outcome = await writer.group(*largest)
            assert not isinstance(outcome, errors.MoatKvError)
            assert len(outcome) == base.BATCH_LIMIT
            revision = engine.revision
            refused = await writer.group(*largest, writer.make(A, b"1"))
            assert isinstance(refused, errors.BatchTooLarge)
            assert (refused.size, refused.limit) == (base.BATCH_LIMIT + 1, base.BATCH_LIMIT)
            assert engine.revision == revision
