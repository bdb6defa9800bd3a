"""The engine for many servers: a JetStream stream that all of them follow, through nats-py.

A server starts one with its tree (`base.Replica`) and submits groups of writes. `nats_line` keeps a
connection, `nats_stream` makes and checks the stream, `nats_feed` applies what comes,
`nats_committing` has writes stored, `nats_compact` forgets deletions. The stream's sequence is the
revision; the order of the stream is the truth, and what a server judges is checked there again.

Runs on asyncio only, because nats-py does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from moat_kv import config, errors
from moat_kv.engine import (
    base,
    nats_committing,
    nats_compact,
    nats_connection,
    nats_feed,
    nats_line,
    nats_messages,
    nats_publish,
    nats_reading,
    nats_settings,
    nats_stream,
    nats_subjects,
)
from moat_kv.entry import Record, Write
from moat_kv.path import Path

_log = logging.getLogger(__name__)

#: A newcomer's load that breaks off goes on with another connection, so often.
LOADS = 5


class NatsEngine(base.Engine):
    """`base.Engine` in the network that `url` names, see `nats_settings.parse`.

    `access`: what the URL does not say. `tombstone_s`: after how many seconds a deletion may be
    forgotten. `patience_s`: how long a write may wait for NATS. `progress` is told of the load at
    the start. `name` is what NATS shows for this server.

    Raises BadConfig.
    """

    def __init__(
        self,
        url: str,
        *,
        access: config.NatsConfig | None = None,
        tombstone_s: float = 3600.0,
        patience_s: float = nats_committing.PATIENCE_S,
        progress: nats_feed.Progress | None = None,
        name: str = "moat-kv",
    ) -> None:
        self._settings = nats_settings.parse(url, access)
        self._settings.options()  # whether its files are there
        self._names = nats_subjects.Names(self._settings.access.network)
        self._place = self._settings.place
        self._tombstone_s = tombstone_s
        self._patience_s = patience_s
        self._progress = progress
        self._name = name
        self.trouble = None
        # None: we have not been in touch yet.
        self._facts: nats_stream.Facts | None = None
        self._feed: nats_feed.Feed
        self._line: nats_line.Line
        self._committer: nats_committing.Committer
        self._compactor: nats_compact.Compactor
        self._running = False
        #: It has been started, and may be at its end.
        self._is_begun = False
        #: Groups are taken.
        self._open = False
        #: Of the present connection, once it is in use.
        self._publisher: nats_publish.Publisher | None = None
        self._connection: nats_connection.Connection | None = None
        self._attached_event: anyio.Event
        self._reading: nats_reading.Reading
        self._messages: nats_messages.Messages

    @property
    def network(self) -> str:
        """The network's name."""
        return self._names.network

    @property
    def revision(self) -> int:  # type: ignore[override]  # the feed's
        """See `base.Engine.revision`."""
        return max(self._feed.revision, self._began_at) if self._is_begun else 0

    @property
    def floor(self) -> int:  # type: ignore[override]  # the feed's
        """See `base.Engine.floor`."""
        return self._feed.floor if self._is_begun else 0

    # Opening and closing ------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, replica: base.Replica) -> AsyncIterator[None]:
        """See `base.Engine.running`. EngineUnfit: no such NATS, or none that serves."""
        self._prepare(replica)
        try:
            connection = await self._load()
            async with self._serving(connection):
                yield
        finally:
            self._open = False
            self._running = False

    def _prepare(self, replica: base.Replica) -> None:
        """Make what lasts over connections. Raises EngineUnfit."""
        if self._running:
            raise RuntimeError("this engine is running already")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise errors.EngineUnfit(
                self._place, "it needs asyncio, and this runs on trio (nats-py knows asyncio only)"
            ) from None
        self._replica = replica
        self._attached_event = anyio.Event()
        self._line = nats_line.Line(self._settings, self._name)
        self._feed = nats_feed.Feed(self._names, replica)
        self._messages = nats_messages.Messages(self._names, replica)
        self._reading = nats_reading.Reading(
            self._names,
            replica,
            self._feed,
            connected=self._connected,
            patience_s=self._patience_s,
        )
        self._began_at = 0
        self._running = self._is_begun = True
        self._make_committer()

    async def _load(self) -> nats_connection.Connection:
        """Find the network and take its tree. The connection for going on."""
        for attempt in range(1, LOADS + 1):
            connection = await self._line.first()
            try:
                nats_connection.check(connection, self._place)
                self._facts = facts = await nats_stream.prepare(
                    connection, self._names, self._settings
                )
                await self._feed.load(connection, self._progress)
            except (nats_connection.NoAnswer, nats_connection.Refused) as exc:
                await connection.close()
                _log.warning("NATS: the load broke off: %s", exc)
                if attempt == LOADS:
                    raise errors.EngineUnfit(self._place, f"cannot read it: {exc}") from exc
            except BaseException:
                await connection.close()
                raise
            else:
                self.epoch = facts.epoch
                self._began_at = facts.revision
                return connection
        raise AssertionError("the last attempt returns or raises")

    def _make_committer(self) -> None:
        self._committer = nats_committing.Committer(
            self._names,
            self._replica,
            self._feed,
            place=self._place,
            attached=self._attached,
            lookup=self._lookup,
            body_limit=self._body_limit,
            report=self._report,
            patience_s=self._patience_s,
        )
        self._compactor = nats_compact.Compactor(
            self._names,
            self._feed,
            tombstone_s=self._tombstone_s,
            connected=self._connected,
            now=self.now,
        )

    @asynccontextmanager
    async def _serving(self, connection: nats_connection.Connection) -> AsyncIterator[None]:
        # Cancelled by the committer's end alone: it needs the line until then.
        background = anyio.CancelScope(shield=True)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep, connection, background)
                tasks.start_soon(self._commit, background)
                tasks.start_soon(self._compactor.run)
                try:
                    await self._attached_event.wait()
                    self._open = True
                    yield
                finally:
                    self._open = False
                    self._committer.close()
                    tasks.cancel_scope.cancel()
        finally:
            await connection.close()

    async def _keep(self, first: nats_connection.Connection, background: anyio.CancelScope) -> None:
        with background:
            try:
                await self._line.keep(first, self._serve)
            except BaseException:  # whatever ends it: the committer would wait for a next line
                self._committer.abandon()
                raise

    async def _commit(self, background: anyio.CancelScope) -> None:
        await self._committer.run()
        background.cancel()

    async def _serve(self, connection: nats_connection.Connection) -> None:
        """Use a connection until it is lost. Raises nats_connection.NoAnswer, EngineError."""
        publisher = nats_publish.Publisher(connection)
        await publisher.open()
        await self._messages.listen(connection)
        # Its answers come behind the subscriptions. (nats-py's `flush` does not wait for these: its
        # ping goes past what is still to be sent.)
        try:
            await self._check_again(connection)
        except nats_connection.Refused as refused:
            raise nats_connection.NoAnswer(str(refused)) from refused
        self._connection, self._publisher = connection, publisher
        self._attached_event.set()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._messages.pass_on, connection)
                await self._feed.follow(connection)
        except* nats_connection.NoAnswer as group:
            raise nats_connection.NoAnswer(str(group.exceptions[0])) from group
        finally:
            self._connection = self._publisher = None
            self._attached_event = anyio.Event()

    async def _check_again(self, connection: nats_connection.Connection) -> None:
        """Whether the node, and the stream as it is now, can go on from what was applied."""
        nats_connection.check(connection, self._place)
        facts = await nats_stream.look(connection, self._names, self._settings)
        floor, _ = await nats_stream.floor(connection, self._names)
        if facts.revision < self._feed.revision:
            # A node that led before a split may say so.
            end = await nats_stream.sure_end(connection, self._names) - 1
            facts = dataclasses.replace(facts, revision=end)
        try:
            nats_feed.same_log(self._feed, facts, floor, self._place, self.epoch)
        except errors.StorageDamaged:
            if facts.revision < self._feed.revision:
                # Its next revisions have been given out before.
                await nats_stream.renew_epoch(connection, self._names, self.epoch)
            raise
        self._facts = facts

    # Writing ------------------------------------------------------------------------------------

    def submit(self, writes: Sequence[Write], done: base.Done) -> None:
        if not self._open:
            raise RuntimeError("this engine is not running")
        self._committer.submit(writes, done)

    async def _attached(self, timeout_s: float) -> nats_publish.Publisher | None:
        if self._publisher is None:
            self._report(self._line.reason)
            with anyio.move_on_after(timeout_s):
                while self._publisher is None:
                    await self._attached_event.wait()
        return self._publisher

    async def _connected(self) -> nats_connection.Connection:
        await self._attached(self._patience_s)
        if self._connection is None:
            raise errors.Detached(self._line.reason)
        return self._connection

    async def _lookup(self, subject: str | None) -> int | None:
        """The last sequence of a subject, or of the stream; None: no answer."""
        if self._connection is None:
            return None
        try:
            if subject is None:
                return await nats_stream.end(self._connection, self._names)
            found = await nats_stream.last(self._connection, self._names, subject)
            return found[0] if found is not None else 0
        except (nats_connection.NoAnswer, nats_connection.Refused) as exc:
            _log.debug("NATS: looking up %s: %s", subject, exc)
            return None

    def _body_limit(self) -> int:
        return self._connection.body_limit if self._connection is not None else 1 << 30

    def _report(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            if trouble is not None:
                _log.error("cannot write to %s: %s", self._place, trouble)
            else:
                _log.info("writing to %s again", self._place)
            self.trouble = trouble

    # Reading ------------------------------------------------------------------------------------

    async def history(self, path: Path, *, limit: int, before: int | None = None) -> list[Record]:
        """See `base.Engine.history`. Raises Detached."""
        return await self._reading.history(path, limit=limit, before=before)

    async def records(self, since: int) -> AsyncIterator[Sequence[Record]]:
        """See `base.Engine.records`. Raises Detached."""
        async for some in self._reading.records(since):
            yield some

    async def compact(self) -> int:
        """See `base.Engine.compact`. Raises Detached."""
        try:
            return await self._compactor.compact()
        except (nats_connection.NoAnswer, nats_connection.Refused) as exc:
            raise errors.Detached(str(exc)) from exc

    def send(self, topic: Path, data: bytes) -> None:
        self._messages.send(topic, data)

    def describe(self) -> dict[str, Any]:
        """`kind`, `place`, `size_bytes` and `records` (about: what the stream said last, and what
        came since), `waiting` (groups), `server` (the NATS node; None: detached), `nats` (its
        version), `replicas`, `history` (of both, None: not in touch yet), `network`.
        """
        connection, facts = self._connection, self._facts
        return {
            "kind": "nats",
            "place": self._place,
            "network": self._names.network,
            "size_bytes": (facts.size_bytes if facts else 0) + self._feed.received_bytes,
            "records": (facts.messages if facts else 0) + self._feed.count,
            "waiting": self._committer.waiting,
            "server": connection.server if connection is not None else None,
            "nats": connection.version if connection is not None else None,
            "replicas": facts.replicas if facts else None,
            "history": facts.history if facts else None,
        }
