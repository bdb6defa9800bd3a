"""What the committer makes of NATS's answers, with a stream whose answers the test chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from moat_kv import errors
from moat_kv.engine import nats_publish
from moat_kv.path import Path
from tests.engine.nats.chosen_answers import (
    CONFLICT,
    OPEN,
    A,
    B,
    Stream,
    Submitter,
    committing,
    revs,
)
from tests.engine.nats.jumping_time import Clock

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(jumping: Clock) -> tuple[str, dict[str, Any]]:
    """asyncio, by a clock that jumps: here are no sockets, and no threads."""
    return "asyncio", {"loop_factory": jumping.make_loop}


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
