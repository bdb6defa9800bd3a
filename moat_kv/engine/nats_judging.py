"""What a group of writes comes to: judged by the applied tree, made into messages, found again.

`nats_committing` asks before it sends a group, and each time before it sends it again. Judging is
`judge`'s; what follows from the records that have come meanwhile is told by the feed's chains.
Sends nothing and waits for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from moat_kv import errors
from moat_kv.engine import (
    base,
    judge,
    nats_feed,
    nats_group,
    nats_publish,
    nats_record,
    nats_subjects,
)
from moat_kv.entry import Head, Record, Write
from moat_kv.path import Path


class Judge:
    """`body_limit`: how large a message may be at present, in bytes. `report`: see `Committer`."""

    def __init__(
        self,
        names: nats_subjects.Names,
        replica: base.Replica,
        feed: nats_feed.Feed,
        *,
        place: str,
        body_limit: Callable[[], int],
        report: Callable[[str | None], None],
    ) -> None:
        self._names = names
        self._replica = replica
        self._feed = feed
        self._place = place
        self._body_limit = body_limit
        self._report = report

    def judge(self, items: Sequence[nats_group.Item]) -> None:
        """Give those their outcome that have one by now; the others are ready to be sent."""
        for item in items:
            if item.sent and self._settled_by_chain(item):
                continue
            item.outcome = self._judged(item)

    def _settled_by_chain(self, item: nats_group.Item) -> bool:
        """Whether it is known by now what became of a group that was sent before.

        Also of one that was refused: a node that does not know yet that it leads no more may refuse
        what the new leader stores (seen after a leader had been frozen).
        """
        chains = [self._feed.chains[write.path] for write, _ in item.messages]
        for place, chain in enumerate(chains):
            if chain.mine is not None:
                item.outcome = self.outcome(item, chain.mine.rev - place)
                self._report(None)  # it is there, though the answer came too late
                return True
        if item.doubtful and any(chain.broken for chain in chains):
            item.outcome = errors.Unknown("records of its path have come and gone meanwhile")
            return True
        bases = [message.expect or 0 for _, message in item.messages]
        if any(chain.last > base_ for chain, base_ in zip(chains, bases, strict=True)):
            # Another record is where it would have had to be: it is not there, nor can get there.
            item.doubtful = item.conflicting = False
        return False

    def _judged(self, item: nats_group.Item) -> base.Outcome | None:
        """What refuses the group, or what it finds already there; else it is ready to be sent."""
        head_of = self._replica.head
        heads = []
        for write in item.writes:
            head = head_of(write.path)
            refused = judge.refusal(write, head, head_of)
            if refused is not None:
                return refused
            heads.append(head)
        now = max(self._feed.at, time.time())
        item.records = [
            judge.unchanged(write, head, now) if write.value is None or write.idem else None
            for write, head in zip(item.writes, heads, strict=True)
        ]
        changing = [
            (write, head)
            for write, head, there in zip(item.writes, heads, item.records, strict=True)
            if there is None
        ]
        if not changing:
            return [record for record in item.records if record is not None]
        item.messages = []
        for nth, (write, head) in enumerate(changing):
            message = self._message(write, head, nth, len(changing))
            if len(message.body) > (limit := self._body_limit()):
                reason = f"NATS takes {limit} bytes at most, this has {len(message.body)}"
                return errors.StorageFailed(
                    self._place, reason, hint="`max_payload` in NATS's configuration raises it"
                )
            item.messages.append((write, message))
        item.guards = self._guards(item)
        return None

    def _message(
        self, write: Write, head: Head | None, nth: int, size: int
    ) -> nats_publish.Message:
        path = write.path
        prev = self._base(path, head)
        chains = self._feed.chains
        if path not in chains:
            rev = head.rev if head is not None else 0
            chains[path] = nats_feed.Chain(rev, write.origin, write.tick)
        return nats_publish.Message(
            subject=self._names.subject(path),
            body=nats_record.body(write, prev, nth, size),
            expect=prev,
        )

    def _base(self, path: Path, head: Head | None) -> int:
        """The last sequence that the path's subject is known to have."""
        left = self._feed.leftovers.get(path, 0)
        return max(left, head.rev) if head is not None else left

    def _guards(self, item: nats_group.Item) -> list[nats_publish.Message]:
        """A message for each entry that guards the group and is not written by it."""
        written = {write.path for write, _ in item.messages}
        found = {}
        for write in item.writes:
            for guard in write.guards:
                if guard.path not in written:
                    head = self._replica.head(guard.path)
                    assert head is not None  # the guard holds
                    found[guard.path] = nats_publish.Message(
                        subject=self._names.guard,
                        body=b"",
                        expect=head.rev,
                        expect_of=self._names.subject(guard.path),
                    )
        return list(found.values())

    def outcome(self, item: nats_group.Item, first: int) -> list[Record]:
        """The group's records, whose first has that revision."""
        found = list(item.records)
        rev = first
        for place, write in enumerate(item.writes):
            if found[place] is not None:
                continue
            mine = self._feed.chains[write.path].mine
            # One that has rolled off by now never came; its time is about that of what did.
            found[place] = mine or Record(
                rev,
                write.path,
                write.value,
                self._feed.at,
                write.origin,
                write.tick,
                write.session,
                write.expires_at,
            )
            rev += 1
        return [record for record in found if record is not None]
