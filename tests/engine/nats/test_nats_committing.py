"""What the committer makes of NATS's answers, with a stream whose answers the test chooses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from moat_kv import errors
from moat_kv.engine import (
    nats_committing,
    nats_feed,
    nats_publish,
    nats_record,
    nats_subjects,
)
from moat_kv.entry import Record, Write
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe

pytestmark = pytest.mark.anyio

A, B = P("a"), P("b")
NAMES = nats_subjects.Names("x")
CONFLICT = nats_publish.Refused(reason="wrong last sequence", conflict=True)
OPEN = nats_publish.Open(reason="no acknowledgement in time")

Reaction = Callable[[Sequence[nats_publish.Message]], nats_publish.Answer]


class Stream:
    """Stands for NATS: stores and delivers, and answers each publish by the next reaction.

    Without a reaction it does what NATS does with one message or batch.
    """

    def __init__(self) -> None:
        self.replica = engine_probe.DictReplica()
        self.feed = nats_feed.Feed(NAMES, self.replica)
        self.reactions: list[Reaction] = []
        self.published: list[list[nats_publish.Message]] = []
        self.last: dict[str, int] = {}
        self.rev = 0
        #: Nobody answers who asks for a last sequence.
        self.is_silent = False

    async def singly(
        self,
        messages: Sequence[nats_publish.Message],
        wait_s: float,
        told: nats_publish.Told | None = None,
    ) -> list[nats_publish.Answer]:
        answers = []
        for place, message in enumerate(messages):
            answer = await self.together([message], wait_s)
            if told is not None and isinstance(answer, nats_publish.Stored):
                told(place, answer.rev)
            answers.append(answer)
        return answers

    async def together(
        self, messages: Sequence[nats_publish.Message], wait_s: float
    ) -> nats_publish.Answer:
        await anyio.lowlevel.checkpoint()
        self.published.append(list(messages))
        return (self.reactions.pop(0) if self.reactions else self.honest)(messages)

    def honest(self, messages: Sequence[nats_publish.Message]) -> nats_publish.Answer:
        for message in messages:
            if self.last.get(message.expect_of or message.subject, 0) != message.expect:
                return CONFLICT
        return self.store(messages)

    def store(self, messages: Sequence[nats_publish.Message]) -> nats_publish.Stored:
        items = []
        for message in messages:
            self.rev += 1
            self.last[message.subject] = self.rev
            path = NAMES.path(message.subject)
            if path is not None:
                place = nats_record.Place(self.rev, self.rev, float(self.rev), 0)
                items.append(nats_record.delivered(path, place, message.body))
        self.feed._take(items)
        return nats_publish.Stored(rev=self.rev)

    def foreign(self, path: Path, value: bytes) -> None:
        """Another server's write."""
        subject, write = NAMES.subject(path), Write(path, value, origin="other:1", tick=self.rev)
        prev = self.last.get(subject, 0)
        message = nats_publish.Message(
            subject=subject, body=nats_record.body(write, prev), expect=prev
        )
        self.store([message])

    async def lookup(self, subject: str | None) -> int | None:
        if self.is_silent:
            await anyio.sleep(10)
        return self.rev if subject is None else self.last.get(subject, 0)


@asynccontextmanager
async def committing(stream: Stream, patience_s: float = 5.0) -> AsyncIterator[Callable[..., None]]:
    async with running(stream, patience_s) as committer:
        yield committer.submit


@asynccontextmanager
async def running(
    stream: Stream, patience_s: float = 5.0
) -> AsyncIterator[nats_committing.Committer]:
    async def attached(timeout_s: float) -> nats_publish.Publisher | None:
        return stream  # type: ignore[return-value]

    committer = nats_committing.Committer(
        NAMES,
        stream.replica,
        stream.feed,
        place="here",
        attached=attached,
        lookup=stream.lookup,
        body_limit=lambda: 1 << 20,
        report=lambda trouble: None,
        patience_s=patience_s,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(committer.run)
        yield committer
        committer.close()


class SilentStream(Stream):
    """Answers nothing for so long."""

    def __init__(self, silent_s: float) -> None:
        super().__init__()
        self.silent_s = silent_s

    async def together(
        self, messages: Sequence[nats_publish.Message], wait_s: float
    ) -> nats_publish.Answer:
        self.published.append(list(messages))
        await anyio.sleep(min(wait_s, self.silent_s))
        return OPEN


class Submitter:
    """Submits writes of one server and waits for their outcomes."""

    def __init__(self, submit: Callable[..., object]) -> None:
        self._submit = submit
        self._tick = 0

    def make(self, path: Path, value: bytes | None, expect: int | None = None) -> Write:
        self._tick += 1
        return Write(path, value, origin="me:1", tick=self._tick, expect=expect)

    async def groups(self, *groups: Sequence[Write]) -> list[list[Record] | errors.MoatKvError]:
        """Their outcomes, in the order of the groups."""
        answers = engine_probe.Answers(len(groups))
        for number, writes in enumerate(groups):
            self._submit(writes, answers.done(number))
        await answers.wait()
        return [
            outcome if isinstance(outcome, errors.MoatKvError) else list(outcome)
            for _, outcome in sorted(answers.outcomes, key=lambda answer: answer[0])
        ]


def revs(outcome: list[Record] | errors.MoatKvError) -> list[int]:
    assert not isinstance(outcome, errors.MoatKvError)
    return [record.rev for record in outcome]


async def test_a_refusal_of_what_was_stored_all_the_same_is_not_believed() -> None:
    """As a node says that does not know yet that another one leads."""
    stream = Stream()
    async with committing(stream) as submit:
        mine = Submitter(submit)

        def refuse_and_store(messages: Sequence[nats_publish.Message]) -> nats_publish.Answer:
            stream.store(messages)
            return CONFLICT

        stream.reactions = [refuse_and_store]
        (outcome,) = await mine.groups([mine.make(A, b"1", expect=0)])
        assert revs(outcome) == [1]
        assert len(stream.published) == 1


async def test_an_unanswered_write_is_sent_again_as_it_was_and_found() -> None:
    stream = Stream()
    async with committing(stream) as submit:
        mine = Submitter(submit)

        def lose(messages: Sequence[nats_publish.Message]) -> nats_publish.Answer:
            return OPEN

        def store_and_lose(messages: Sequence[nats_publish.Message]) -> nats_publish.Answer:
            stream.store(messages)
            return OPEN

        stream.reactions = [lose, lose, store_and_lose]
        (outcome,) = await mine.groups([mine.make(A, b"1"), mine.make(B, b"1", expect=0)])
        assert revs(outcome) == [1, 2]
        assert stream.published == [stream.published[0]] * 3


async def test_an_unanswered_write_behind_another_servers_is_judged_anew() -> None:
    stream = Stream()
    async with committing(stream) as submit:
        mine = Submitter(submit)

        def overtaken(messages: Sequence[nats_publish.Message]) -> nats_publish.Answer:
            stream.foreign(A, b"other")
            return OPEN

        stream.reactions = [overtaken]
        (outcome,) = await mine.groups([mine.make(A, b"mine")])
        assert revs(outcome) == [2]
        assert [each.expect for (each,) in stream.published] == [0, 1]
        stream.reactions = [overtaken]
        (refused,) = await mine.groups([mine.make(A, b"mine", expect=2)])
        assert isinstance(refused, errors.Conflict)
        assert refused.have == 3


async def test_what_cannot_be_told_is_unknown() -> None:
    """The records that would tell have rolled off before they came."""
    stream = Stream()
    async with committing(stream) as submit:
        mine = Submitter(submit)

        def gap(messages: Sequence[nats_publish.Message]) -> nats_publish.Answer:
            stream.last[messages[0].subject] = stream.rev = 7  # of which nothing came
            stream.foreign(A, b"other")
            return OPEN

        stream.reactions = [gap]
        (outcome,) = await mine.groups([mine.make(A, b"mine")])
        assert isinstance(outcome, errors.Unknown)
        assert len(stream.published) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (OPEN, errors.Unknown),
        (CONFLICT, errors.Unknown),
        (nats_publish.Refused(reason="no leader", passing=True), errors.Detached),
    ],
    ids=["no-answer", "unexplained", "nobody-there"],
)
async def test_what_is_not_settled_in_time_is_told_apart(
    answer: nats_publish.Answer, error: type[errors.MoatKvError]
) -> None:
    stream = Stream()
    async with committing(stream, patience_s=0.2) as submit:
        mine = Submitter(submit)
        stream.reactions = [lambda messages: answer] * 1000
        outcomes = await mine.groups([mine.make(A, b"1")], [mine.make(B, b"1", expect=0)])
        assert [type(each) for each in outcomes] == [error, error]
        stream.reactions = []
        (outcome,) = await mine.groups([mine.make(A, b"2")])
        assert revs(outcome) == [1]


async def test_of_a_batch_that_meets_another_write_all_the_rest_goes_in() -> None:
    stream = Stream()
    async with committing(stream) as submit:
        mine = Submitter(submit)

        def late(messages: Sequence[nats_publish.Message]) -> nats_publish.Answer:
            stream.foreign(Path(7), b"other")
            return CONFLICT

        stream.reactions = [late]
        groups = [[mine.make(Path(n), b"1", expect=0)] for n in range(40)]
        outcomes = await mine.groups(*groups)
        assert len(stream.published[0]) == 40
        refused = [n for n, each in enumerate(outcomes) if isinstance(each, errors.MoatKvError)]
        assert refused == [7]
        assert sorted(rev for n, each in enumerate(outcomes) if n != 7 for rev in revs(each)) == [
            *range(2, 41)
        ]


async def test_a_refusal_for_good_hits_its_own_group_alone() -> None:
    stream = Stream()
    async with committing(stream) as submit:
        mine = Submitter(submit)

        def full(messages: Sequence[nats_publish.Message]) -> nats_publish.Answer:
            if any(each.subject.endswith("=i5") for each in messages):
                return nats_publish.Refused(reason="not this one")
            return stream.honest(messages)

        stream.reactions = [full] * 100
        outcomes = await mine.groups(*[[mine.make(Path(n), b"1")] for n in range(20)])
        failed = [each for each in outcomes if isinstance(each, errors.MoatKvError)]
        assert [type(each) for each in failed] == [errors.StorageFailed]
        assert outcomes[5] is failed[0]


async def test_what_has_waited_for_too_long_is_not_sent_any_more() -> None:
    stream = Stream()
    writes, answers = Submitter(lambda *arguments: None), engine_probe.Answers(2)

    def silent(messages: Sequence[nats_publish.Message]) -> nats_publish.Answer:
        time.sleep(0.1)  # the patience of whatever waits behind it is over then, too
        return OPEN

    stream.reactions = [silent]
    async with committing(stream, patience_s=0.05) as submit:
        submit([writes.make(A, b"1")], answers.done(0))
        submit([writes.make(A, b"2")], answers.done(1))
        await answers.wait()
    first, second = (outcome for _, outcome in answers.outcomes)
    assert isinstance(first, errors.Unknown)
    assert isinstance(second, errors.Detached)
    assert len(stream.published) == 1


async def test_looking_for_what_explains_a_conflict_takes_no_longer_than_the_patience() -> None:
    stream = Stream()
    stream.is_silent = True
    stream.reactions = [lambda messages: CONFLICT] * 100
    async with committing(stream, patience_s=0.3) as submit:
        began = time.monotonic()
        mine = Submitter(submit)
        outcomes = await mine.groups([mine.make(A, b"1")], [mine.make(B, b"1")])
        assert [type(outcome) for outcome in outcomes] == [errors.Unknown] * 2
        assert time.monotonic() - began < 2


async def test_who_has_waited_for_long_enough_is_not_kept_by_who_came_later() -> None:
    stream = SilentStream(silent_s=0.1)
    writes, answers = Submitter(lambda *arguments: None), engine_probe.Answers(3)
    told: list[int] = []

    def done(number: int) -> Callable[..., None]:
        def note(outcome: object) -> None:
            told.append(number)
            answers.done(number)(outcome)  # type: ignore[arg-type]

        return note

    async with running(stream, patience_s=1.0) as committer:
        committer.submit([writes.make(A, b"1", expect=0)], done(0))
        await anyio.sleep(0.05)
        committer.submit([writes.make(B, b"1", expect=0)], done(1))
        await anyio.sleep(0.5)
        committer.submit([writes.make(P("c"), b"1", expect=0)], done(2))
        # The first one is there, seen with the others' answers: these two then go on together.
        stream.store([stream.published[0][0]])
        with anyio.fail_after(10):
            while len(told) < 2:
                await anyio.sleep(0.001)
        assert told == [0, 1]
        await answers.wait()
    outcomes = dict(answers.outcomes)
    assert revs(outcomes[0]) == [1]  # type: ignore[arg-type]
    assert [type(outcomes[number]) for number in (1, 2)] == [errors.Unknown] * 2


async def test_who_is_cut_off_is_told_at_once_of_what_was_not_sent() -> None:
    stream = SilentStream(silent_s=0.3)
    writes, answers = Submitter(lambda *arguments: None), engine_probe.Answers(3)
    async with running(stream, patience_s=0.6) as committer:
        committer.submit([writes.make(A, b"1")], answers.done(0))
        await anyio.sleep(0.05)
        committer.submit([writes.make(A, b"2", expect=0)], answers.done(1))
        committer.refuse_unsent("there is no quorum")
        ((first, refused),) = answers.outcomes
        assert (first, str(refused)) == (1, str(errors.Detached("there is no quorum")))
        committer.submit([writes.make(B, b"1")], answers.done(2))
        await answers.wait()
    (_, _), (sent, unknown), (late, unsent) = answers.outcomes
    assert (sent, type(unknown)) == (0, errors.Unknown)
    assert (late, type(unsent)) == (2, errors.Detached)
    assert {message.subject for group in stream.published for message in group} == {
        NAMES.subject(A)
    }


async def test_who_is_in_touch_again_sends_again() -> None:
    stream = Stream()
    async with running(stream) as committer:
        committer.refuse_unsent("there is no quorum")
        mine = Submitter(committer.submit)
        assert [type(each) for each in await mine.groups([mine.make(A, b"1")])] == [errors.Detached]
        committer.accept()
        assert revs((await mine.groups([mine.make(A, b"1")]))[0]) == [1]


async def test_what_waits_behind_others_waits_no_longer_than_the_patience() -> None:
    stream = SilentStream(silent_s=10.0)
    writes, answers = Submitter(lambda *arguments: None), engine_probe.Answers(41)
    async with running(stream, patience_s=0.5) as committer:
        began = time.monotonic()
        for number in range(40):  # a batch, then parts of it
            committer.submit([writes.make(Path(number), b"1")], answers.done(number))
        await anyio.sleep(0.01)
        committer.submit([writes.make(Path(1), b"2")], answers.done(40))
        await answers.wait()
        assert time.monotonic() - began < 4
    outcomes = dict(answers.outcomes)
    assert {type(outcomes[number]) for number in range(40)} == {errors.Unknown}
    assert type(outcomes[40]) in (errors.Detached, errors.Unknown)
