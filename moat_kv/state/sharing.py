"""Models shared with other processes, through a client.

`attach` makes a `Sharing` of a client, which gives each model an entry in the tree and a lock in
the network (`shared_entry`), and follows the entries. All of it runs in the client's event loop; an
`Attachment` is what users hold, in plain threads and in event loops.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal

from moat_kv import blocking
from moat_kv import errors as kv_errors
from moat_kv.client import results as kv_results
from moat_kv.client.client import Client
from moat_kv.coord import aio, ground, loop_thread
from moat_kv.path import Path
from moat_kv.state import (
    grounds,
    kept_lock,
    loops,
    reach,
    registry,
    settling,
    shared_entry,
    stored,
)
from moat_kv.state.model import StateModel

if TYPE_CHECKING:
    from types import TracebackType

    from moat_kv.state.grounds import Ground
    from moat_kv.state.slot import Slot

logger = logging.getLogger(__name__)

#: The locks of models are below this, in the place of locks.
LOCKS = "model"
#: How long letting go may take, in seconds; the session's end does the rest.
STOP_S = 10.0


class Sharing:
    """One client, and the models that are shared through it. Lives in the client's loop."""

    def __init__(
        self,
        client: Client,
        within: registry.Models,
        classes: Iterable[type[StateModel]] | None,
    ) -> None:
        self.models = within
        self._client = client
        self._classes = None if classes is None else set(classes)
        self._process = aio.Process(client)
        self._entries: dict[Path, shared_entry.SharedEntry] = {}
        self._followed: set[str] = set()
        self._scopes: list[anyio.CancelScope] = []
        # Whoever calls `attach` need not keep what it returns: it keeps the client open.
        self.attachment: Attachment | None = None
        self.reach: reach.Reach

    def wants(self, cls: type[StateModel]) -> bool:
        return self._classes is None or cls in self._classes

    # Its life, in the loop ----------------------------------------------------------------------

    async def start(self) -> None:
        """Begin. Raises Detached and what else keeps a session from being opened."""
        await self._process.start()
        try:
            await self._client.task_group.start(self._run)
        except BaseException:
            await self.stop()
            raise

    async def _run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.CancelScope() as scope:
            self._scopes.append(scope)
            async with BlockingPortal() as portal:
                self.reach = reach.Reach(portal)
                try:
                    task_status.started()
                    await anyio.sleep_forever()
                finally:
                    await portal.stop(cancel_remaining=True)

    async def stop(self) -> None:
        """Let go of all models, also if cancelled; they go on alone."""
        self.models.sharings = tuple(each for each in self.models.sharings if each is not self)
        for entry in self._entries.values():
            entry.slot.entry = None
        self._entries.clear()
        with anyio.move_on_after(STOP_S, shield=True):
            await self._process.stop()
        for scope in self._scopes:
            scope.cancel()

    # Models -------------------------------------------------------------------------------------

    async def adopt_all(self, ground: Ground) -> None:
        """Share the models that are loaded, and those that will be."""
        self.models.sharings += (self,)
        for slot in self.models:
            if self.wants(slot.cls):
                await self.adopt(ground, slot)

    async def adopt(self, ground: Ground, slot: Slot) -> None:
        """Share a model: have the state that is in the tree, or put this one there.

        Raises NameTaken if another class shares that name; Detached.
        """
        await ground.io(self.reach, self._adopt, slot)

    async def _adopt(self, slot: Slot) -> None:
        name = Path(slot.name) if slot.id is None else Path(slot.name, slot.id)
        path = self._process.places.model + name
        entry = self._entries.get(path)
        if entry is not None and entry.slot is not slot and entry.slot.entry is entry:
            raise kv_errors.NameTaken("model", str(name))
        if entry is None or entry.slot is not slot:
            lock = None
            if not slot.cls.offline:
                lock = kept_lock.KeptLock(
                    self._process.lock(Path(LOCKS) + name), self._client.task_group
                )
            entry = shared_entry.SharedEntry(slot, self._client, self.reach, path, lock)
        if await entry.open():
            slot.recovered = True
        self._entries[path] = entry
        slot.entry = entry
        await self._describe(slot)
        if slot.name not in self._followed:
            self._followed.add(slot.name)
            await self._client.task_group.start(self._follow, slot.name)

    async def _describe(self, slot: Slot) -> None:
        """Keep the schema, for those who have only the tree to look at."""
        path = schema_path(self._process.places.model, slot.name)
        try:
            await self._client.set(path, stored.schema_of(slot.cls), idem=True)
        except kv_errors.MoatKvError as exc:
            logger.warning("the schema of %s is not in the tree: %s", slot.label, exc)

    async def _follow(self, name: str, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.CancelScope() as scope:
            self._scopes.append(scope)
            async with self._client.watch(self._process.places.model / name, fetch=True) as events:
                task_status.started()
                async for event in events:
                    if isinstance(event, kv_results.WatchEvent):
                        entry = self._entries.get(event.path)
                        if entry is not None:
                            entry.follow(event)


def schema_path(place: Path, name: str) -> Path:
    """Where the schema of a model is kept, below the place of models."""
    return place / name / None


# What users hold ----------------------------------------------------------------------------------


class Attachment:
    """What `attach` returns: `with attach(url): ...`, or `async with attach(client): ...`."""

    def __init__(
        self,
        target: Client | blocking.Client | str | Sequence[str] | None,
        models: Iterable[type[StateModel]] | None,
        within: registry.Models,
    ) -> None:
        self._target = target
        self._classes = None if models is None else list(models)
        self._models = within
        self._stack = ExitStack()
        self._sharing: Sharing | None = None
        self._pid = os.getpid()

    # In plain threads ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Connect, and share what is loaded. Raises CannotConnect, Detached and the like."""
        blocking.refuse_event_loop()
        with self._stack:
            client = self._open()
            sharing = client.run(self._start, client.asynchronous)
            try:
                ground.drive(sharing.adopt_all(grounds.BLOCKING))
            except BaseException:
                client.run(sharing.stop)
                raise
            self._sharing = sharing
            self._stack = self._stack.pop_all()
        atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        settling.at_exit()  # subscribers may commit in turn
        try:
            self.detach()
        except kv_errors.MoatKvError as exc:
            logger.debug("the client had ended before: %s", exc)

    def _open(self) -> blocking.Client:
        target = self._target
        assert not isinstance(target, Client)
        return self._stack.enter_context(loop_thread.open_client(target))

    async def _start(self, client: Client) -> Sharing:
        sharing = Sharing(client, self._models, self._classes)
        sharing.attachment = self
        await sharing.start()
        return sharing

    def detach(self) -> None:
        """Share no more. Models that are loaded go on alone. Doing it again changes nothing.

        Nor does it in a process that was forked: the client is the other one's.
        """
        atexit.unregister(self._at_exit)
        sharing, self._sharing = self._sharing, None
        stack, self._stack = self._stack, ExitStack()
        if os.getpid() != self._pid:
            return
        with stack:
            if sharing is not None:
                sharing.reach.call(sharing.stop)

    def __enter__(self) -> Self:
        if isinstance(self._target, Client):
            raise TypeError("a client of an event loop is attached by `async with` or `await`")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    # In event loops -----------------------------------------------------------------------------

    async def _abegin(self) -> Self:
        if not isinstance(self._target, Client):
            await anyio.to_thread.run_sync(self.begin)
        elif self._sharing is None:
            sharing = await self._start(self._target)
            try:
                await sharing.adopt_all(grounds.ASYNC)
            except BaseException:
                await sharing.stop()
                raise
            self._sharing = sharing
        return self

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._abegin().__await__()

    async def adetach(self) -> None:
        """`detach` in an event loop."""
        if not isinstance(self._target, Client):
            await anyio.to_thread.run_sync(self.detach)
            return
        sharing, self._sharing = self._sharing, None
        if sharing is not None:
            await sharing.stop()

    async def __aenter__(self) -> Self:
        return await self._abegin()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.adetach()


def attach(
    client_or_url: Client | blocking.Client | str | Sequence[str] | None = None,
    models: Iterable[type[StateModel]] | None = None,
    *,
    within: registry.Models | None = None,
) -> Attachment:
    """Share models with all processes that attach to the same network.

    In a plain thread, with a URL (None: the default one) or a `moat_kv.blocking.Client`: it is done
    when this returns. In an event loop: `async with attach(client)` or `await attach(client)`, with
    a client of that loop or a URL. `models`: the classes; None: all, also those loaded later.

    Each model has what the tree has of it, or else is put there as it is. Raises CannotConnect,
    Detached, NameTaken, and what a stored state cannot be read for.
    """
    made = Attachment(client_or_url, models, within or registry.models)
    if not isinstance(client_or_url, Client) and not loops.has_loop():
        made.begin()
    return made
