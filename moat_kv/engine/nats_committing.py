"""Groups of writes on their way into the stream: judged here, ordered there, answered when applied.

`engine.nats` hands over what is submitted. What waits is taken together (`nats_group.take`), no
path twice: a few single writes go as messages of their own and are answered one by one, more of
them, groups and guarded writes as one atomic batch. The next are taken when all of these are
answered, so groups enter the log in their order, and one message is under way per path.

Judged against the applied tree (`nats_judging`); the last sequences that go with the messages make
it hold in the log. Where another server was quicker, what came is applied and the group judged
anew. Where no answer comes, the same records are sent again with the same sequences, which can
succeed once at most; whether they were there already is seen as they are applied
(`nats_feed.Chain`). What cannot be told within the patience is `Unknown`, what was certainly not
stored `Detached`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import anyio

from moat_kv import errors, waiting
from moat_kv.engine import (
    base,
    nats_feed,
    nats_group,
    nats_judging,
    nats_publish,
    nats_subjects,
)
from moat_kv.entry import Write

_log = logging.getLogger(__name__)

#: How long a group may wait for NATS before it is answered `Detached` or `Unknown`, in seconds.
PATIENCE_S = 10.0
#: What was stored for certain is answered all the same when it was not applied in this time and the
#: server is stopping, in seconds.
APPLY_AT_END_S = 5.0
#: So many single writes go one by one; more in a batch, whose own cost is that of some ten of them
#: (measured: 3.5 ms, against 0.27 ms for a message when NATS syncs each).
SINGLY = 12
#: How often it is looked whether something has waited for too long, in seconds.
LOOK_S = 0.25
#: A question for a last sequence is given up after so long, in seconds: it can be asked again.
LOOK_UP_S = 2.0
#: Waited after a conflict that nothing visible explains, or a passing refusal, in seconds.
PAUSE_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)

Attached = Callable[[float], Awaitable["nats_publish.Publisher | None"]]
"""The publisher of the present connection, waited for at most so many seconds."""

Lookup = Callable[[str | None], Awaitable["int | None"]]
"""The last sequence of a subject, or of the whole log; None: nobody could say."""


class Committer:
    """Takes groups until it is closed.

    `body_limit`: how large a message may be at present, in bytes. `report`: why nothing can be
    stored at present, None when it can.
    """

    def __init__(
        self,
        names: nats_subjects.Names,
        replica: base.Replica,
        feed: nats_feed.Feed,
        *,
        place: str,
        attached: Attached,
        lookup: Lookup,
        body_limit: Callable[[], int],
        report: Callable[[str | None], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._replica = replica
        self._feed = feed
        self._place = place
        self._attached = attached
        self._lookup = lookup
        self._report = report
        self._judge = nats_judging.Judge(
            names, replica, feed, place=place, body_limit=body_limit, report=report
        )
        self._patience_s = patience_s
        self._waiting: deque[nats_group.Item] = deque()
        #: Of the last round, what is to be answered.
        self._settled: list[nats_group.Item] = []
        #: Of the present round, what is stored and not applied, by revision.
        self._stored_at: deque[tuple[int, nats_group.Item]] = deque()
        feed.on_applied = self._answer_applied
        self._open = True
        # What has not been sent yet is not kept waiting.
        self._is_refusing = False
        self._make_waiter = waiting.maker()
        self._wake = self._make_waiter()

    @property
    def waiting(self) -> int:
        """How many groups are not under way yet."""
        return len(self._waiting)

    def submit(self, writes: Sequence[Write], done: base.Done) -> None:
        """See `base.Engine.submit`. Not after `close`."""
        self._waiting.append(nats_group.Item(writes, done))
        self._wake.set()

    def refuse_unsent(self, reason: str) -> None:
        """There is no NATS for a while: answer what has not been sent."""
        self._tell_settled()
        self._is_refusing = True
        refused, self._waiting = self._waiting, deque()
        for item in refused:
            item.done(errors.Detached(reason))

    def accept(self) -> None:
        """NATS is there again."""
        self._is_refusing = False

    def abandon(self) -> None:
        """There is no more NATS: answer all at once."""
        self._patience_s = 0.0

    def close(self) -> None:
        """Take no more; `run` ends when everything is answered."""
        self._open = False
        self._wake.set()

    async def run(self) -> None:
        """Publish what comes. Not to be cancelled: what was submitted is finished first."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._end_overdue)
                await self._run()
                tasks.cancel_scope.cancel()

    async def _run(self) -> None:
        while self._waiting or self._open:
            if not self._waiting:
                await self._wake.wait()
                self._wake = self._make_waiter()
                continue
            items = nats_group.take(self._waiting)
            await self._settle(items)
            self._settled += items
            if self._waiting:
                # Once the next are on their way: NATS need not wait for that.
                asyncio.get_running_loop().call_soon(self._tell_settled)
            else:
                self._tell_settled()

    def _tell_settled(self) -> None:
        """Answer those of the last round; before any that came after them."""
        settled, self._settled = self._settled, []
        for item in settled:
            item.tell()

    async def _end_overdue(self) -> None:
        """Answer what has waited for too long behind others, and so was not sent."""
        while True:
            await anyio.sleep(LOOK_S)
            while self._waiting and self._left_s([self._waiting[0]]) <= 0:
                self._tell_settled()
                self._waiting.popleft().done(errors.Detached("NATS stores nothing at present"))

    # One round after the other ------------------------------------------------------------------

    async def _settle(self, items: Sequence[nats_group.Item]) -> None:
        """Give each its outcome."""
        parts, pauses = 1, 0
        try:
            while todo := [item for item in items if item.outcome is None]:
                self._judge.judge(todo)
                # Each would cost a moment more, and many may have waited while NATS was silent.
                self._give_up([item for item in todo if item.outcome is None and not item.sent])
                # Others that came later may be under way for longer.
                if any(item.outcome is not None for item in items):
                    self._tell_settled()
                    for item in items:
                        item.tell()
                todo = [item for item in todo if item.outcome is None]
                if not todo:
                    return
                publisher = await self._attached(0.0)
                if publisher is None:
                    # What was judged is judged anew afterwards: it may be another matter by then.
                    if await self._attached(max(0.0, self._left_s(todo))) is None:
                        self._give_up(todo)
                    continue
                # A batch that met another server's write is tried again in ever smaller parts.
                seen = self._feed.revision
                lasting = await self._publish(publisher, todo, parts)
                parts *= 2
                todo = [item for item in todo if item.outcome is None]
                if todo and lasting and self._feed.revision == seen:
                    with anyio.move_on_after(LOOK_UP_S):
                        await self._look_up([item for item in todo if item.conflicting])
                    await anyio.sleep(PAUSE_S[min(pauses, len(PAUSE_S) - 1)])
                    pauses += 1
                self._give_up(todo)
        finally:
            self._feed.chains.clear()
            self._stored_at.clear()

    def _left_s(self, items: Sequence[nats_group.Item]) -> float:
        return min(item.since for item in items) + self._patience_s - time.monotonic()

    def _give_up(self, items: Sequence[nats_group.Item]) -> None:
        """Answer those of them that have waited for too long."""
        for item in items:
            is_refused = self._is_refusing and not item.sent
            if self._left_s([item]) > 0 and not is_refused:
                continue
            reason = "NATS has not stored it in time"
            if item.doubtful or item.conflicting:
                item.outcome = errors.Unknown(reason)
            else:
                item.outcome = errors.Detached(reason)

    # Publishing ---------------------------------------------------------------------------------

    async def _publish(
        self, publisher: nats_publish.Publisher, items: Sequence[nats_group.Item], parts: int
    ) -> bool:
        """Send what was judged; whether anything was refused or got no answer."""
        pairs: list[tuple[list[nats_group.Item], nats_publish.Answer]] = []
        step = -(-len(items) // parts)
        for start in range(0, len(items), step):
            part = list(items[start : start + step])
            left_s = self._left_s(items)
            if start and left_s <= 0:
                break  # of no use to anybody any more
            for item in part:
                item.sent = True
            wait_s = min(nats_publish.ACK_S, max(0.1, left_s))
            if self._may_go_singly(part):
                answers = await self._singly(publisher, part, wait_s)
                pairs += [([item], answer) for item, answer in zip(part, answers, strict=True)]
            else:
                pairs.append((part, await publisher.together(nats_group.messages(part), wait_s)))
        stored = [(part, a) for part, a in pairs if isinstance(a, nats_publish.Stored)]
        if stored:
            self._report(None)
            # What was stored for certain is answered as such, even if it cannot be seen here yet.
            # Nobody waits longer for that than for an acknowledgement: others wait behind it.
            patience_s = self._left_s(items) if self._open else APPLY_AT_END_S
            await self._feed.reach(max(answer.rev for _, answer in stored), max(1.0, patience_s))
            for part, answer in stored:
                self._stored(part, answer.rev)
        for part, other in pairs:
            if not isinstance(other, nats_publish.Stored):
                await self._not_stored(part, other)
        return len(stored) < len(pairs)

    def _may_go_singly(self, items: Sequence[nats_group.Item]) -> bool:
        return len(items) <= SINGLY and all(
            len(item.messages) == 1 and not item.guards for item in items
        )

    async def _singly(
        self, publisher: nats_publish.Publisher, items: Sequence[nats_group.Item], wait_s: float
    ) -> list[nats_publish.Answer]:
        """Send each by itself; those that are stored and applied are answered at once."""

        def told(place: int, rev: int) -> None:
            self._stored_at.append((rev, items[place]))
            self._answer_applied()

        return await publisher.singly([item.messages[0][1] for item in items], wait_s, told)

    def _answer_applied(self) -> None:
        waiting = self._stored_at
        while waiting and waiting[0][0] <= self._feed.revision:
            rev, item = waiting.popleft()
            if item.outcome is None:
                item.outcome = self._judge.outcome(item, rev)
                self._tell_settled()
                item.tell()

    def _stored(self, items: Sequence[nats_group.Item], rev: int) -> None:
        if len(items) == 1 and items[0].outcome is not None:
            return  # answered meanwhile
        rev -= sum(len(item.messages) for item in items) - 1
        for item in items:
            item.outcome = self._judge.outcome(item, rev)
            rev += len(item.messages)

    async def _not_stored(
        self, items: Sequence[nats_group.Item], answer: nats_publish.Refused | nats_publish.Open
    ) -> None:
        """Learn what came instead, or mark what is open."""
        if isinstance(answer, nats_publish.Open):
            self._report(answer.reason)
            for item in items:
                item.doubtful = True
            return
        if answer.conflict:
            for item in items:
                item.conflicting = True
            rev = answer.rev if answer.rev is not None else await self._last(items, None)
            if rev is not None:
                await self._feed.reach(rev, max(0.0, self._left_s(items)))
            return
        self._report(answer.reason)
        if answer.passing:
            return
        for item in items:
            if item.doubtful:
                item.outcome = errors.Unknown(answer.reason)
            elif len(items) == 1:
                item.outcome = errors.StorageFailed(self._place, answer.reason)

    async def _last(self, items: Sequence[nats_group.Item], subject: str | None) -> int | None:
        """As `_lookup`, but not for longer than these groups may wait: NATS may be silent."""
        with anyio.move_on_after(min(LOOK_UP_S, max(0.0, self._left_s(items)))):
            return await self._lookup(subject)
        return None

    async def _look_up(self, items: Sequence[nats_group.Item]) -> None:
        """Ask for the last sequences where nothing that was applied explains a conflict.

        A path's subject may still have a deletion that is forgotten here, or none any more.
        """
        leftovers = self._feed.leftovers
        for item in items:
            for write, message in item.messages:
                rev = await self._last(items, message.subject)
                if rev is None or rev > self._feed.revision:
                    continue
                head = self._replica.head(write.path)
                if rev > (head.rev if head is not None else 0):
                    leftovers[write.path] = rev
                else:
                    leftovers.pop(write.path, None)
