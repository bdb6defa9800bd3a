"""Sessions: being known as alive, over breaks of the line.

`Client.session` gives one. A task of the client pings for it; after a change of lines it is resumed
before anything else. It is given up here before the server can end it, so that whoever acts under
it has stopped when its entries go: when the last acknowledged sign of life is older than its time
to live, or its line has been broken for most of its grace. Only durations decide.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Self

import anyio
import anyio.abc

from moat_kv import errors
from moat_kv.client import connection

if TYPE_CHECKING:
    from types import TracebackType

    from moat_kv.client.link import Link

logger = logging.getLogger(__name__)

#: So many pings in a time to live.
PINGS = 3
#: The part of the time to live, and of the grace, after which this end gives up.
GIVE_UP = 0.8
#: A server that says so may end a session later.
_LATER = (errors.Detached, errors.StorageFailed, errors.Unknown)
#: How long closing a session may take, in seconds; the server ends it anyway a little later.
CLOSE_LIMIT_S = 2.0
#: How long who doubts that it lives waits for its end, in seconds.
DOUBT_S = 0.1


class Session:
    """`async with client.session() as s`: writes with `session=s` end with it.

    `id`; `ttl_s` and `grace_s` as the server granted them; `lost` is set when it has ended without
    being closed, and `why_lost` says why then; `ended` tells that it has ended in whichever way.
    `give_up_s` is for how long its line may be broken, in seconds.
    """

    def __init__(
        self, link: Link, sessions: Sessions, *, ttl_s: float | None, grace_s: float | None
    ) -> None:
        self.id = ""
        self.ttl_s = 0.0
        self.grace_s = 0.0
        self.lost = anyio.Event()
        self.why_lost = ""
        self.ended = False
        self._link = link
        self._sessions = sessions
        self._asked = {"ttl_s": ttl_s, "grace_s": grace_s}
        self._secret = ""
        # As far as is known here; one that was given up may still live there.
        self._lives_at_server = False
        # When the last sign of life that was acknowledged had been sent (monotonic seconds).
        self._alive_at = 0.0
        # When the line was seen to be broken.
        self._broken_at: float | None = None
        # A request was told that it has ended.
        self._is_doubted = False
        self._scope: anyio.CancelScope | None = None
        self._news = anyio.Event()

    @property
    def give_up_s(self) -> float:
        return GIVE_UP * self.grace_s

    @property
    def good_until(self) -> float:
        """When this end gives it up unless a sign of life is acknowledged before.

        By `time.monotonic`; 0 if it has ended.
        """
        return 0.0 if self.ended else self._give_up_at()

    async def __aenter__(self) -> Self:
        arguments = {name: value for name, value in self._asked.items() if value is not None}
        sent_at = time.monotonic()
        reply = await self._link.call("session_open", arguments)
        self._alive_at = sent_at
        fields = reply.fields
        self.id, self._secret = fields["session"], fields["secret"]
        self.ttl_s, self.grace_s = fields["ttl_s"], fields["grace_s"]
        self._lives_at_server = True
        self._sessions.add(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End it now; what it owned is deleted. Does nothing the second time.

        One that was lost is ended too, so that nobody has to wait for its time to live. Where there
        is no line for it, that is done on the next one.
        """
        if not self.ended:
            self._end()
        if not self._lives_at_server:
            return
        self._lives_at_server = False
        told = self._sessions.end_soon(self)
        with anyio.move_on_after(CLOSE_LIMIT_S, shield=True):
            await told.wait()

    async def end_at(self, line: Link | connection.Connection) -> None:
        """Have the server end it, whichever line it was on."""
        try:
            if self.lost.is_set() or isinstance(line, connection.Connection):
                await line.call("session_resume", {"session": self.id, "secret": self._secret})
            await line.call("session_close", {"session": self.id})
        except errors.SessionExpired as exc:
            logger.debug("session %s had ended already: %s", self.id, exc)

    def _end(self) -> None:
        self.ended = True
        self._sessions.remove(self)
        if self._scope is not None:
            self._scope.cancel()

    def _lose(self, reason: str) -> None:
        if self.ended:
            return
        logger.info("session %s is lost: %s", self.id, reason)
        self.why_lost = reason
        self.lost.set()
        self._end()

    async def doubt(self) -> None:
        """A request was told that it has ended: have the server asked now.

        Returns when it is lost, or, should it live after all, a little later.
        """
        self._is_doubted = True
        self._news.set()
        with anyio.move_on_after(DOUBT_S):
            await self.lost.wait()

    # Staying alive ------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Ping until it has ended."""
        with anyio.CancelScope() as self._scope:
            while not self.ended:
                now, give_up_at = time.monotonic(), self._give_up_at()
                ping_at = self._alive_at + self.ttl_s / PINGS
                if now >= give_up_at:
                    self._lose("no sign of life was acknowledged in time")
                elif self._broken_at is not None:
                    await self._wait_until(give_up_at)
                elif now < ping_at and not self._is_doubted:
                    await self._wait_until(ping_at)
                else:
                    await self._ping(give_up_at - now)

    def _give_up_at(self) -> float:
        give_up_at = self._alive_at + GIVE_UP * self.ttl_s
        if self._broken_at is not None:
            give_up_at = min(give_up_at, self._broken_at + self.give_up_s)
        return give_up_at

    async def _wait_until(self, when: float) -> None:
        """Until that time, or until something has happened to the line."""
        self._news = anyio.Event()
        with anyio.move_on_after(max(0.0, when - time.monotonic())):
            await self._news.wait()

    async def _ping(self, limit_s: float) -> None:
        self._is_doubted = False
        sent_at = time.monotonic()
        with anyio.move_on_after(limit_s):
            try:
                await self._link.call("session_ping", {"session": self.id})
            except errors.SessionExpired:
                self._lives_at_server = False
                self._lose("the server has ended it")
            except (errors.Disconnected, errors.Unknown):
                # The line has just broken, and `interrupted` was called, or a new one is there.
                await self._wait_until(sent_at + self.ttl_s / PINGS / 10)
            else:
                self._alive_at = sent_at

    def interrupted(self) -> None:
        """The line broke: the grace begins, if it has not before."""
        if self._broken_at is None:
            self._broken_at = time.monotonic()
        self._news.set()

    async def resume(self, line: connection.Connection) -> None:
        """Go on with it on a new line, at this server or another one.

        Raises Detached, Unknown, StorageFailed if that server cannot have it now.
        """
        sent_at = time.monotonic()
        if sent_at >= self._give_up_at():
            self._lose("its line was broken for too long")
            return
        try:
            await line.call("session_resume", {"session": self.id, "secret": self._secret})
        except errors.SessionExpired:
            self._lives_at_server = False
            self._lose("the server has ended it")
        else:
            self._alive_at = sent_at
            self._broken_at = None
            self._news.set()


class Sessions:
    """The live sessions of a client; resumes them on each new line."""

    def __init__(self, link: Link, tasks: anyio.abc.TaskGroup) -> None:
        self._link = link
        self._tasks = tasks
        self._live: dict[str, Session] = {}
        # Those that are over here, and to be ended on the next line.
        self._left: list[Session] = []

    def add(self, session: Session) -> None:
        self._live[session.id] = session
        self._tasks.start_soon(session.keep)

    def remove(self, session: Session) -> None:
        self._live.pop(session.id, None)

    def end_soon(self, session: Session) -> anyio.Event:
        """Have the server end one that is over here; the event says that this was tried."""
        told = anyio.Event()
        self._tasks.start_soon(self._end, session, told)
        return told

    async def _end(self, session: Session, told: anyio.Event) -> None:
        # Not cancelled when its owner waits no longer: a server that hangs may hear it yet.
        try:
            await session.end_at(self._link)
        except (*_LATER, errors.Disconnected) as exc:
            logger.debug("session %s is ended on the next line: %s", session.id, exc)
            self._left.append(session)
        finally:
            told.set()

    def lose(self, id: str, reason: str) -> None:
        """Give one up, because what hangs on it cannot be had any more."""
        session = self._live.get(id)
        if session is not None:
            session._lose(reason)

    def is_live(self, id: str) -> bool:
        return id in self._live

    async def restore(self, line: connection.Connection) -> None:
        while self._left:
            try:
                await self._left[0].end_at(line)
            except _LATER as exc:
                logger.debug("session %s is ended later: %s", self._left[0].id, exc)
                break
            del self._left[0]
        for session in list(self._live.values()):
            await session.resume(line)

    def interrupted(self) -> None:
        for session in self._live.values():
            session.interrupted()
