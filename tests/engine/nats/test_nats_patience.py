"""How long the committer lets a write wait: behind others, for answers, and while cut off."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from moat_kv import errors
from moat_kv.engine import nats_publish
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe
from tests.engine.nats.chosen_answers import (
    CONFLICT,
    NAMES,
    OPEN,
    A,
    B,
    SilentStream,
    Stream,
    Submitter,
    committing,
    revs,
    running,
)
from tests.engine.nats.jumping_time import Clock

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(jumping: Clock) -> tuple[str, dict[str, Any]]:
    """asyncio, by a clock that jumps: here are no sockets, and no threads."""
    return "asyncio", {"loop_factory": jumping.make_loop}


async def test_what_has_waited_for_too_long_is_not_sent_any_more(jumping: Clock) -> None:
    stream = Stream()
    writes, answers = Submitter(lambda *arguments: None), engine_probe.Answers(2)

    def silent(messages: Sequence[nats_publish.Message]) -> nats_publish.Answer:
        jumping.now += 0.1  # the patience of whatever waits behind it is over then, too
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
