"""Mirrors: a local, always current copy of a subtree, made of active objects.

`ClientRoot` follows a subtree through a `Feed` and applies each change at once, in the line's
reader: what is read here costs no request, and nothing queues up. Subclasses of `ClientEntry` give
entries behaviour: `updated` is called after each change. A write through an entry returns when the
mirror has seen it.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import anyio

from moat_kv import codec, config, errors
from moat_kv.client import results, watch, writes
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path, element_key
from moat_kv.path_element import Element

if TYPE_CHECKING:
    from collections.abc import Callable

    from moat_kv.client.client import Client

logger = logging.getLogger(__name__)

_ROOT = Path()
_R = TypeVar("_R", bound="ClientRoot")


class ClientEntry:
    """One entry of a mirror.

    `value` is NotGiven if it has none; `rev` is 0 if it never had one. An entry without a value is
    there as long as it has children, or somebody holds it.
    """

    child_type: Any = None
    """The class of children: a subclass of `ClientEntry`, or a method that is given the child's
    name and returns one. By default children are of their parent's class; a root's are
    `ClientEntry`."""

    def __init__(self, parent: ClientEntry | None, name: Element, root: ClientRoot) -> None:
        self.parent = parent
        self.name = name
        self.root = root
        self.path: Path = parent.path / name if parent is not None else Path()
        """Relative to the root."""
        self.value: Any = NotGiven
        self.rev = 0
        self.at: float | None = None
        self._children: dict[Any, ClientEntry] = {}
        self._epoch = ""
        # Which fetch of the root has told this value.
        self._told_in = 0

    @property
    def absolute(self) -> Path:
        """The path in the tree."""
        return self.root.base + self.path

    @property
    def client(self) -> Client:
        return self.root._client

    @property
    def chain(self) -> results.Chain | None:
        """Token for "only if nobody has written since"; None where there is no value."""
        return results.Chain(self._epoch, self.rev) if self.value is not NotGiven else None

    def updated(self) -> Awaitable[None] | None:
        """Called after each change of `value` (NotGiven: it was deleted).

        May be overridden, also by an async method. An async one runs in a task of the root, one
        at a time in the order of changes; when it is called, a further change may already be there.
        """
        return None

    # Reading ------------------------------------------------------------------------------------

    def __getitem__(self, where: Element | Path) -> ClientEntry:
        """The entry at an element or a relative path. Raises KeyError."""
        found = self.get(where)
        if found is None:
            raise KeyError(where)
        return found

    def get(self, where: Element | Path) -> ClientEntry | None:
        """The entry at an element or a relative path; None if there is none."""
        keys = where.keys if isinstance(where, Path) else (element_key(where),)
        entry = self
        for key in keys:
            child = entry._children.get(key)
            if child is None:
                return None
            entry = child
        return entry

    def __contains__(self, where: Element | Path) -> bool:
        return self.get(where) is not None

    def __iter__(self) -> Iterator[Element]:
        """The names of the children."""
        return (child.name for child in list(self._children.values()))

    def __len__(self) -> int:
        return len(self._children)

    def __bool__(self) -> bool:
        return True  # also without children

    def values(self) -> list[ClientEntry]:
        """The children."""
        return list(self._children.values())

    def items(self) -> list[tuple[Element, ClientEntry]]:
        """The children with their names."""
        return [(child.name, child) for child in self._children.values()]

    @property
    def all_children(self) -> Iterator[ClientEntry]:
        """All entries below this one, a parent before its children."""
        waiting = deque(self._children.values())
        while waiting:
            entry = waiting.popleft()
            yield entry
            waiting.extendleft(reversed(entry._children.values()))

    def follow(self, path: Path, create: bool = False) -> Any:
        """The entry at a relative path (of the class that `child_type` says).

        Raises KeyError if there is none, unless `create`: then an entry without a value, which
        becomes part of the mirror when it gets one, as long as somebody holds it.
        """
        writes.check_path(path)
        entry = self
        for name in path:
            child = entry.get(name)
            if child is None:
                if not create:
                    raise KeyError(path)
                child = entry._new_child(name)
            entry = child
        return entry

    # Writing ------------------------------------------------------------------------------------

    async def update(self, value: Any, *, wait: bool = True, **options: Any) -> results.Result:
        """Write the value. `wait`: return when the mirror has seen it.

        `options` and errors are those of `Client.set`.
        """
        result = await self.client.set(self.absolute, value, **options)
        if wait:
            await self._wait_for(result.rev)
        return result

    async def set_value(self, value: Any) -> None:
        """Write the value, and wait until the mirror has seen it."""
        await self.update(value)

    async def delete(self, *, wait: bool = True, **options: Any) -> results.Result:
        """Delete the value; children stay. `options` and errors are those of `Client.delete`."""
        result = await self.client.delete(self.absolute, **options)
        if wait:
            await self._wait_for(result.rev)
        return result

    async def _wait_for(self, rev: int) -> None:
        await self.root._wait(lambda: self.rev >= rev or self.root._seen_rev >= rev)

    # Applying -----------------------------------------------------------------------------------

    def _child_class(self, name: Element) -> type[ClientEntry]:
        kind = self.child_type
        if kind is None:
            kind = ClientEntry if isinstance(self, ClientRoot) else type(self)
        elif not isinstance(kind, type):
            kind = kind(name)
        return cast("type[ClientEntry]", kind)

    def _new_child(self, name: Element) -> ClientEntry:
        """An entry that is known to the root, but not a part of the mirror yet."""
        path = self.path / name
        entry = self.root._loose.get(path)
        if entry is None:
            entry = self._child_class(name)(self, name, self.root)
            self.root._loose[path] = entry
        return entry

    def _attach(self) -> None:
        entry = self
        while entry.parent is not None:
            siblings = entry.parent._children
            key = element_key(entry.name)
            if siblings.get(key) is entry:
                return
            siblings[key] = entry
            self.root._loose.pop(entry.path, None)
            entry = entry.parent

    def _detach(self) -> None:
        """Leave the mirror if there is nothing here; so do parents that are empty then."""
        entry = self
        while entry.parent is not None and entry.value is NotGiven and not entry._children:
            if entry.parent._children.pop(element_key(entry.name), None) is None:
                return
            # Whoever holds it goes on seeing it if a value comes again.
            self.root._loose[entry.path] = entry
            entry = entry.parent

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.absolute} {self.value!r}>"


class ClientRoot(ClientEntry):
    """The top of a mirror; also an entry itself."""

    def __init__(self, client: Client, path: Path) -> None:
        #: The mirrored subtree.
        self.base = path
        self._client = client
        #: The mirror shows everything up to this revision.
        self._seen_rev = 0
        # Entries that are not part of the mirror, but that somebody holds.
        self._loose: weakref.WeakValueDictionary[Path, ClientEntry] = weakref.WeakValueDictionary()
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
        await self._wait(lambda: self._seen_rev >= rev)

    async def ready(self) -> None:
        """Until the mirror has been complete once. Raises as `wait_rev`."""
        await self._wait(lambda: self._is_complete)

    async def _wait(self, done: Callable[[], bool]) -> None:
        limit_s = self._client.shared.link.request_timeout_s
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
            raise self._client.shared.link.overdue("watch")

    def _tell_waiters(self) -> None:
        if self._waiters:
            self._progress.set()
            self._progress = anyio.Event()

    # Life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow the subtree. Called once, by `as_handler` and `Client.mirror`."""
        self._client.shared.link.open_stream(self._feed)

    def stop(self) -> None:
        """Follow it no more; what is there stays as it is."""
        self._client.shared.link.close_stream(self._feed)
        if self._hook_scope is not None:
            self._hook_scope.cancel()

    def _failed(self, error: errors.MoatKvError) -> None:
        self._failure = error
        self._tell_waiters()

    # What the feed tells ------------------------------------------------------------------------

    def _apply(self, row: list[Any], epoch: str) -> None:
        path, packed, rev, at, _id = row
        entry = self._find(path, create=packed is not None)
        if entry is None:
            return
        entry._told_in = self._fetch
        if entry.rev == rev and entry._epoch == epoch and (entry.value is NotGiven) == (not packed):
            return  # told twice
        try:
            entry.value = codec.unpack(packed) if packed is not None else NotGiven
        except errors.BadValue as exc:
            # A newer client may write what this one cannot read; the rest goes on.
            logger.error("the value at %s cannot be read: %s", path, exc)
            return
        entry.rev, entry.at, entry._epoch = rev, at, epoch
        self._changed(entry)

    def _find(self, path: Path, *, create: bool) -> ClientEntry | None:
        entry: ClientEntry = self
        keys = path.keys
        for index in range(len(self.base), len(keys)):
            child = entry._children.get(keys[index])
            if child is None:
                if not create:
                    return None
                child = entry._new_child(path[index])
            entry = child
        return entry

    def _changed(self, entry: ClientEntry) -> None:
        if entry.value is NotGiven:
            entry._detach()
        else:
            entry._attach()
        hook = entry.updated
        if inspect.iscoroutinefunction(hook):
            self._run_later(entry)
            return
        try:
            hook()
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

    # Async hooks --------------------------------------------------------------------------------

    def _run_later(self, entry: ClientEntry) -> None:
        if self._hook_scope is None:
            self._hook_scope = anyio.CancelScope()
            self._client.task_group.start_soon(self._run_hooks)
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
