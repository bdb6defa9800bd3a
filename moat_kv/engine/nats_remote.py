"""The engine on NATS for servers that go on without it: `remote.Remote` over the parts of `nats`.

Started by `engine.network`. Where `nats.NatsEngine` gives up (no node at the start, a stream that
is not what it was), this says that it is cut off, or has the server begin anew, and keeps trying.
A live connection is not enough to be in touch: `nats_touch` judges that by acknowledgements.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from moat_kv import errors
from moat_kv.engine import (
    age,
    nats,
    nats_connection,
    nats_feed,
    nats_publish,
    nats_stream,
    nats_touch,
    remote,
)

_log = logging.getLogger(__name__)

#: Strict writes wait for NATS for so long, in seconds; plain ones are kept much earlier.
PATIENCE_S = 8.0
#: Before writes are compared by their times, NATS's time should be known to so many seconds; on a
#: slow line so many more round trips are made, of which a quick one may do.
TELLING_S, MORE_TRIPS = 0.3, 3


class NatsRemote(nats.NatsEngine, remote.Remote):
    """`remote.Remote` in the network that `url` names; arguments as those of `nats.NatsEngine`."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **{"patience_s": PATIENCE_S, **options})
        self._follower: remote.Follower
        self._known = remote.Known()
        self._touch: nats_touch.Touch
        # Where this connection went on from, 0 for nowhere; and that the next one must not.
        self._since = 0
        self._is_void = False
        self._cut = anyio.Event()
        self._probing = anyio.Lock()
        self._probes = 0

    @asynccontextmanager
    async def following(
        self, follower: remote.Follower, known: remote.Known
    ) -> AsyncIterator[None]:
        self._prepare(follower)
        self._follower, self._known = follower, known
        state = known.state
        self.epoch = state.epoch
        self._feed.resume(state.revision, state.floor, state.contact_at, known.tombstones)
        self._feed.newest = known.newest
        self._touch = nats_touch.Touch(
            self._line,
            self._names,
            self._feed,
            check=self._check_deletions,
            attached=self._caught_up,
            cut_off=self._cut_off,
        )
        self._touch.wait()
        background = anyio.CancelScope(shield=True)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep_in_touch, background)
                tasks.start_soon(self._touch.judge)
                tasks.start_soon(self._commit, background)
                tasks.start_soon(self._compactor.run)
                self._open = True
                try:
                    yield
                finally:
                    self._open = False
                    self._committer.close()
                    tasks.cancel_scope.cancel()
        finally:
            self._running = False

    # The connection -----------------------------------------------------------------------------

    async def _keep_in_touch(self, background: anyio.CancelScope) -> None:
        with background:
            try:
                await self._line.keep(await self._first(), self._serve_following)
            except BaseException:  # whatever ends it: the committer would wait for a next line
                self._committer.abandon()
                raise

    async def _first(self) -> nats_connection.Connection:
        while True:
            try:
                return await self._line.first()
            except errors.EngineUnfit as exc:
                if not self._known.state.epoch:
                    raise
                self._touch.leave(str(exc.facts["reason"]))

    async def _serve_following(self, connection: nats_connection.Connection) -> None:
        """Use one until it is lost. Raises nats_connection.NoAnswer; EngineUnfit at first."""
        connection.is_of_use = False
        self._touch.wait()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._touch.measure, connection)
                async with self._touch.looking_elsewhere(nats_touch.NEW_S):
                    await self._find_log(connection)
                self._since = self._feed.revision
                if not self._feed.revision:
                    await self._feed.load(connection, self._progress)
                publisher = await self._take_up(connection)
                tasks.start_soon(self._messages.pass_on, connection)
                tasks.start_soon(self._feed.follow, connection)
                tasks.start_soon(self._touch.prove, connection)
                self._connection, self._publisher = connection, publisher
                self._attached_event.set()
        except* nats_connection.NoAnswer as group:
            self._touch.trouble = str(group.exceptions[0])
            raise nats_connection.NoAnswer(self._touch.trouble) from group
        finally:
            self._connection = self._publisher = None
            self._attached_event = anyio.Event()
            self._touch.wait()

    async def _find_log(self, connection: nats_connection.Connection) -> None:
        """Know whether the stream goes on from where we are; if not, begin anew."""
        try:
            nats_connection.check(connection, self._place)
            if self.epoch:
                facts, floor = await nats_stream.look_with_floor(
                    connection, self._names, self._settings
                )
                if await self._is_same(connection, facts, floor):
                    self._feed.know_floor(floor)
                else:
                    self._begin_anew()
                    facts = await nats_stream.look(connection, self._names, self._settings)
            else:
                facts = await nats_stream.prepare(connection, self._names, self._settings)
            self._facts, self.epoch = facts, facts.epoch
        except nats_connection.Refused as refused:
            reason = str(refused)
            if refused.number == nats_stream.STREAM_NOT_FOUND:
                reason = (
                    "its stream is gone; bring it back, or make it anew with `moat kv log restore`"
                )
                self._touch.leave(reason)
            raise nats_connection.NoAnswer(reason) from refused
        except errors.EngineUnfit as exc:
            if not self._known.state.epoch:
                raise
            self._touch.leave(str(exc))
            raise nats_connection.NoAnswer(str(exc)) from exc

    async def _is_same(
        self, connection: nats_connection.Connection, facts: nats_stream.Facts, floor: int
    ) -> bool:
        """Whether the stream goes on from what was applied here."""
        if self._is_void:
            return False
        if facts.revision < self._feed.revision:
            # A node that led before a split may say so.
            end = await nats_stream.sure_end(connection, self._names) - 1
            facts = dataclasses.replace(facts, revision=end)
        try:
            nats_feed.same_log(self._feed, facts, floor, self._place, self.epoch)
        except errors.StorageDamaged as exc:
            if facts.epoch == self.epoch and facts.revision < self._feed.revision:
                # Its next revisions have been given out before.
                await nats_stream.renew_epoch(connection, self._names, self.epoch)
            _log.warning("NATS: %s", exc)
            return False
        newest = self._feed.newest
        if newest is None:
            return True
        there = await nats_stream.record_at(connection, self._names, newest.rev)
        if there is None or (there.path, there.origin, there.tick) == (
            newest.path,
            newest.origin,
            newest.tick,
        ):
            return True
        _log.warning("NATS: revision %d is another record than the one known here", newest.rev)
        return False

    def _begin_anew(self) -> None:
        self._touch.leave("its log is another one now, which is taken anew")
        self._is_void = False
        self._follower.restart()
        self._feed.reset()
        self._known = remote.Known(self._known.state)

    async def _take_up(self, connection: nats_connection.Connection) -> nats_publish.Publisher:
        publisher = nats_publish.Publisher(connection, self._feed.clock)
        await publisher.open()
        await self._messages.listen(connection)
        await connection.know_subscriptions()
        return publisher

    # In touch or not ----------------------------------------------------------------------------

    def _check_deletions(self) -> None:
        """Whether none is forgotten that was not seen here: what a node has said of that at the
        beginning may have been old, and it has come by now. Raises nats_connection.NoAnswer.
        """
        if self._since and self._feed.floor > self._since:
            self._is_void = True
            raise nats_connection.NoAnswer("deletions are forgotten that were not seen here")

    def _caught_up(self) -> None:
        self._cut = anyio.Event()
        self._committer.accept()
        self._report(None)
        self._follower.caught_up()

    def _cut_off(self, reason: str) -> None:
        if not self._open:
            return  # who stops has no news
        self._follower.cut_off(reason)
        self._committer.refuse_unsent(reason)
        self._cut.set()

    def _report(self, trouble: str | None) -> None:
        # Said by the follower, once; here every late acknowledgement is one.
        self.trouble = trouble
        if trouble is None:
            self._touch.acknowledged()

    async def _attached(self, timeout_s: float) -> nats_publish.Publisher | None:
        """As that of `NatsEngine`; what is not sent is not waited for when we are cut off."""
        self._touch.wait()
        if self._publisher is not None or self._cut.is_set():
            return await super()._attached(timeout_s)
        cut = self._cut
        async with anyio.create_task_group() as tasks:

            async def until_cut() -> None:
                await cut.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_cut)
            await super()._attached(timeout_s)
            tasks.cancel_scope.cancel()
        return self._publisher

    async def catch_up(self) -> None:
        """See `base.Engine.catch_up`. Those who ask while a probe is under way share the next."""
        wanted = self._probes + (2 if self._probing.locked() else 1)
        with anyio.move_on_after(PATIENCE_S):
            async with self._probing:
                while self._probes < wanted and self._touch.is_in_touch:
                    if await self._attached(PATIENCE_S) is None or self._connection is None:
                        break
                    if await self._touch.probe(self._connection):
                        self._probes += 1
                if self._probes >= wanted:
                    return
        raise errors.Detached("NATS does not acknowledge")

    async def learn_time(self) -> None:
        """See `remote.Remote.learn_time`. Who is in touch has made one round trip."""
        for _ in range(MORE_TRIPS):
            if self._feed.clock.uncertain_s <= TELLING_S:
                break
            await self.catch_up()

    def now(self) -> float:
        clock = self._feed.clock
        if not clock.is_set:
            return max(time.time(), self._known.state.contact_at)
        return clock.now(age.up_s(), time.time())
