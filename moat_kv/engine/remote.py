"""The contract of an engine that is elsewhere, and may be out of reach.

Beside what `engine.base` asks, it says whether it is in touch. `engine.network` puts one behind a
server's own copy and outbox, so that the server goes on without it.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from moat_kv.engine import base
from moat_kv.engine.copy_store import State
from moat_kv.entry import Record
from moat_kv.path import Path


class Known(NamedTuple):
    """What a server knows of the log when it starts."""

    state: State = State()
    """Without an epoch: nothing."""
    newest: Record | None = None
    """The newest record that it has: whether the log is still the same can be told by it."""
    tombstones: Mapping[Path, tuple[int, float]] = {}
    """Per path whose newest record is a deletion: its revision and time."""


class Follower(base.Replica, Protocol):
    """A replica that may have to begin anew."""

    def restart(self) -> None:
        """What was applied before is not what the log says: forget it, all comes again."""

    def caught_up(self) -> None:
        """Everything that was in the log a moment ago has been applied; called once in touch."""

    def cut_off(self, reason: str) -> None:
        """The engine is out of reach; called once, until `caught_up`."""


class Remote(base.Engine):
    """A log that several servers share.

    `submit` is answered with Unknown where it cannot be found out whether a group was written, and
    with Detached where it was not and cannot be now. A `LateWrite` gets its own time, if that is
    not later than the engine's. Records of `apply` come in order over breaks of the line.
    """

    @abc.abstractmethod
    def following(self, follower: Follower, known: Known) -> AbstractAsyncContextManager[None]:
        """Be in touch when possible, and tell `follower` everything that is not known.

        Entered at once, in touch or not. To who knows nothing it may raise EngineUnfit, from the
        context, if the log can never be reached as things are.
        """

    @abc.abstractmethod
    async def learn_time(self) -> None:
        """Have `now` as right as the line allows; called once in touch, before what was kept
        meanwhile is compared with others' writes. Raises Detached.
        """
