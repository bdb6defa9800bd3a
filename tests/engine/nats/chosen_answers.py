"""A stream whose answers the test chooses, in NATS's place, and the committer before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel

from moat_kv import errors
from moat_kv.engine import nats_committing, nats_feed, nats_publish, nats_record, nats_subjects
from moat_kv.entry import Record, Write
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe

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
