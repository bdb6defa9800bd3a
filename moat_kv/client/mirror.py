"""Mirrors: a local, always current copy of a subtree, made of active objects (`active`).

`ClientRoot` follows a subtree through a `Feed` and applies each change at once, in the line's
reader: nothing queues up, and what is read is as new as what has arrived.
"""

from __future__ import annotations

import enum
import inspect
import logging
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio

from moat_kv import codec, config, errors
from moat_kv.client import results, watch, writes
from moat_kv.client.active import ClientEntry as ClientEntry
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path

if TYPE_CHECKING:
    from collections.abc import Callable

    from moat_kv.client.client import Client

logger = logging.getLogger(__name__)

_ROOT = Path()
_R = TypeVar("_R", bound="ClientRoot")


class _Hook(enum.Enum):
    """What there is to call after a change."""

    NONE = enum.auto()
    AT_ONCE = enum.auto()
    LATER = enum.auto()


#: By class of entry; looking into a method costs more than applying a change.
_hooks: dict[type[ClientEntry], _Hook] = {}


def _kind_of_hook(kind: type[ClientEntry]) -> _Hook:
    found = _Hook.AT_ONCE
    if kind.updated is ClientEntry.updated:
        found = _Hook.NONE
    elif inspect.iscoroutinefunction(kind.updated):
        found = _Hook.LATER
    _hooks[kind] = found
    return found


class ClientRoot(ClientEntry):
    """The top of a mirror; also an entry itself."""

    def __init__(self, client: Client, path: Path) -> None:
        #: The mirrored subtree.
        self.base = path
        self.own_client = client
        #: The mirror shows everything up to this revision.
        self._seen_rev = 0
        # Entries that are not part of the mirror, but that somebody holds.
        self.loose = weakref.WeakValueDictionary[Path, ClientEntry]()
        #: Ids of the writes that are shown and pending, by absolute path.
        self.pending_ids: dict[Path, str] = {}
        self._fetch = 1
        self._is_complete = False
        self._failure: errors.MoatKvError | None = None
        self._progress = anyio.Event()
        self._waiters = 0
        # Whose async `updated` is to be called, in order.
        self._hooks: OrderedDict[ClientEntry, None] = OrderedDict()
        self._hook_news = anyio.Event()
        self._hook_scope: anyio.CancelScope | None = None
        self._feed = _MirrorFeed(client, self)
        super().__init__(None, None, self)

    @classmethod
    def place(cls, places: config.Places) -> Path:
        """Where this kind of subtree is, for `as_handler` without a path. To be overridden."""
        raise TypeError(f"{cls.__name__} has no place of its own; give as_handler a path")

    @classmethod
    async def as_handler(
        cls,
        client: Client,
        *,
        subpath: Path = _ROOT,
        places: config.Places | None = None,
        path: Path | None = None,
        **options: Any,
    ) -> Self:
        """The client's mirror of this class at a path, complete; made at the first call.

        It lives as long as the client, and is the same for the same class and path. The path is
        `path`, or this class's place in the network (`places`, else read from the tree), followed
        by `subpath`. `options` go to the class when it is made.

        Raises Disconnected, RequestTimeout, or what the server refuses the watch with.
        """
        if path is None:
            path = cls.place(places or await config.load_places(client))
        writes.check_path(path)
        path = path + subpath
        mirrors, key = client.shared.mirrors, (cls, path, client.binding)
        root = mirrors.get(key)
        if root is None:
            root = mirrors[key] = cls(client, path, **options)
            root.start()
        try:
            await root.ready()
        except errors.MoatKvError:
            if mirrors.get(key) is root:
                del mirrors[key]
            root.stop()
            raise
        assert isinstance(root, cls)
        return root

    # Waiting ------------------------------------------------------------------------------------

    @property
    def seen_rev(self) -> int:
        """Everything in this subtree up to that revision is shown."""
        return self._seen_rev

    async def wait_rev(self, rev: int) -> None:
        """Until the change of that revision is seen; `rev` is one of a write in this subtree.

        Raises RequestTimeout, Disconnected if the client is closed.
        """
        await self.wait_for(lambda: self._seen_rev >= rev)

    async def ready(self) -> None:
        """Until the mirror has been complete once. Raises as `wait_rev`."""
        await self.wait_for(lambda: self._is_complete)

    async def wait_for(self, done: Callable[[], bool]) -> None:
        limit_s = self.own_client.shared.link.request_timeout_s
        with anyio.move_on_after(limit_s):
            while not done():
                if self._failure is not None:
                    raise self._failure
                self._waiters += 1
                try:
                    await self._progress.wait()
                finally:
                    self._waiters -= 1
            return
        if not done():
            raise self.own_client.shared.link.overdue("watch")

    def _tell_waiters(self) -> None:
        if self._waiters:
            self._progress.set()
            self._progress = anyio.Event()

    # Life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow the subtree. Called once, by `as_handler` and `Client.mirror`."""
        self.own_client.shared.link.open_stream(self._feed)

    def stop(self) -> None:
        """Follow it no more; what is there stays as it is."""
        self.own_client.shared.link.close_stream(self._feed)
        if self._hook_scope is not None:
            self._hook_scope.cancel()

    def _failed(self, error: errors.MoatKvError) -> None:
        self._failure = error
        self._tell_waiters()

    # What the feed tells ------------------------------------------------------------------------

    def _apply(self, row: list[Any], epoch: str) -> None:
        path, packed, rev, at, id_, *pending = row
        was_pending = self.pending_ids.pop(path, None) if self.pending_ids else None
        if pending:
            self.pending_ids[path] = id_
        try:
            value = codec.unpack(packed) if packed is not None else NotGiven
        except errors.BadValue as exc:
            # A newer client may write what this one cannot read; the rest goes on.
            logger.error("the value at %s cannot be read: %s", path, exc)
            return
        entry = self._find(path, create=packed is not None)
        if entry is None:
            return
        entry._told_in = self._fetch
        same_kind = (entry.value is NotGiven) == (value is NotGiven)
        is_settled = not pending and was_pending is None
        if is_settled and same_kind and entry.rev == rev and entry._epoch == epoch:
            return  # told twice
        entry.value, entry.rev, entry.at, entry._epoch = value, rev, at, epoch
        self._changed(entry)

    def _find(self, path: Path, *, create: bool) -> ClientEntry | None:
        entry: ClientEntry = self
        keys = path.keys
        for index in range(len(self.base), len(keys)):
            child = entry._children.get(keys[index])
            if child is None:
                if not create:
                    return None
                child = entry.adopt(keys[index], path[index])
            entry = child
        return entry

    def _changed(self, entry: ClientEntry) -> None:
        if entry.value is NotGiven:
            entry.detach()
        kind = type(entry)
        hook = _hooks.get(kind) or _kind_of_hook(kind)
        if hook is _Hook.NONE:
            return
        if hook is _Hook.LATER:
            self._run_later(entry)
            return
        try:
            if entry.updated() is not None:
                raise TypeError("updated() returns something; make it `async def` to be awaited")
        except Exception:
            # One entry's fault must not stop the mirror, nor the line.
            logger.exception("updated() of %r failed", entry)

    def _reach(self, rev: int) -> None:
        self._seen_rev = rev

    def _complete(self) -> None:
        """A state has been told: what it did not have is gone."""
        for entry in [self, *self.all_children]:
            if entry.value is not NotGiven and entry._told_in != self._fetch:
                entry.value, entry.rev, entry.at = NotGiven, 0, None
                self._changed(entry)
        self._is_complete = True

    def _begin_anew(self) -> None:
        """A state will be told anew; until it is complete, the old one is shown."""
        self._fetch += 1
        self._seen_rev = 0
        self.pending_ids.clear()

    # Async hooks --------------------------------------------------------------------------------

    def _run_later(self, entry: ClientEntry) -> None:
        if self._hook_scope is None:
            self._hook_scope = anyio.CancelScope()
            self.own_client.task_group.start_soon(self._run_hooks)
        self._hooks[entry] = None
        self._hook_news.set()

    async def _run_hooks(self) -> None:
        assert self._hook_scope is not None
        with self._hook_scope:
            while True:
                while self._hooks:
                    entry, _ = self._hooks.popitem(last=False)
                    await self._run_hook(entry)
                self._hook_news = anyio.Event()
                await self._hook_news.wait()

    async def _run_hook(self, entry: ClientEntry) -> None:
        try:
            waiting = entry.updated()
            if waiting is not None:
                await waiting
        except Exception:
            # As above: the hooks of the others come after it.
            logger.exception("updated() of %r failed", entry)


class _MirrorFeed(watch.Feed):
    """Follows the subtree for a root."""

    def __init__(self, client: Client, root: ClientRoot) -> None:
        super().__init__(client.shared.link, root.base, fetch=True)
        self._root = root

    def item(self, fields: dict[str, Any], value: bytes | None) -> None:
        super().item(fields, value)
        self._root._tell_waiters()

    def on_rows(self, rows: list[list[Any]]) -> None:
        for row in rows:
            self._root._apply(row, self._epoch)

    def on_mark(self, mark: results.Mark) -> None:
        self._root._reach(mark.rev)

    def on_ready(self) -> None:
        self._root._complete()

    def on_reset(self, reason: str) -> None:
        self._root._begin_anew()

    def ended(self, error: errors.MoatKvError | None) -> None:
        super().ended(error)
        self._root._failed(error or errors.Disconnected("the server has ended the watch"))


@asynccontextmanager
async def mirrored(client: Client, path: Path, cls: type[_R]) -> AsyncIterator[_R]:
    """A mirror of its own that ends with the context; see `Client.mirror`."""
    root = cls(client, path)
    root.start()
    try:
        await root.ready()
        yield root
    finally:
        root.stop()
