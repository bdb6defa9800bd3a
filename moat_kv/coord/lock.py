"""Locks, elections and barriers for plain threads: those of `aio`, called and waited for."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Self

import anyio

from moat_kv import blocking
from moat_kv.coord.aio import barrier as aio_barrier
from moat_kv.coord.aio import election as aio_election
from moat_kv.coord.aio import lock as aio_lock
from moat_kv.path import Path

if TYPE_CHECKING:
    from types import TracebackType


class Lost:
    """Whether a lock is gone without a release; as much of an event as has a use here."""

    def __init__(self, client: blocking.Client, event: anyio.Event) -> None:
        self._client = client
        self._event = event

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is, or for so many seconds; whether it is."""
        return self._client.run(self._wait, timeout)

    async def _wait(self, timeout: float | None) -> bool:
        with anyio.move_on_after(timeout):
            await self._event.wait()
        return self._event.is_set()


class Lock:
    """`with process.lock("name") as lock: ...`; see `moat_kv.coord.aio.Lock`.

    One object is one holder; threads that are to exclude each other make one each.
    """

    def __init__(self, client: blocking.Client, lock: aio_lock.Lock) -> None:
        self._client = client
        #: The lock in the event loop.
        self.asynchronous = lock

    @property
    def name(self) -> str:
        return self.asynchronous.name

    @property
    def held(self) -> bool:
        return self.asynchronous.held

    @property
    def fence(self) -> int:
        return self.asynchronous.fence

    @property
    def guard(self) -> tuple[Path, int]:
        return self.asynchronous.guard

    @property
    def lost(self) -> Lost:
        """Has `is_set()` and `wait(timeout)`."""

        async def find() -> anyio.Event:
            return self.asynchronous.lost

        return Lost(self._client, self._client.run(find))

    def acquire(self, timeout_s: float | None = None) -> int:
        return self._client.run(self.asynchronous.acquire, timeout_s)

    def release(self) -> None:
        self._client.run(self.asynchronous.release)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Election(Lock):
    """`with process.election("boss", value): ...`; see `moat_kv.coord.aio.Election`."""

    asynchronous: aio_election.Election

    def __init__(self, client: blocking.Client, election: aio_election.Election) -> None:
        super().__init__(client, election)

    campaign = Lock.acquire
    resign = Lock.release

    def leader(self) -> aio_election.Leader | None:
        return self._client.run(self.asynchronous.leader)

    def leaders(self) -> Generator[aio_election.Leader | None, None, None]:
        source = self.asynchronous.leaders()
        try:
            while True:
                yield self._client.run(source.__anext__)
        finally:
            self._client.run(source.aclose)


class Barrier:
    """`process.barrier("start", 3).wait()`; see `moat_kv.coord.aio.Barrier`."""

    def __init__(self, client: blocking.Client, barrier: aio_barrier.Barrier) -> None:
        self._client = client
        self.asynchronous = barrier

    @property
    def name(self) -> str:
        return self.asynchronous.name

    @property
    def parties(self) -> int:
        return self.asynchronous.parties

    def wait(self, timeout_s: float | None = None) -> int:
        return self._client.run(self.asynchronous.wait, timeout_s)
