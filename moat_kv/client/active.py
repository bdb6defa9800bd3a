"""Active objects: the entries of a mirror.

Made by `mirror`, whose `ClientRoot` fills and changes them; users subclass `ClientEntry` to give
their entries behaviour. Reading costs no request; a write goes to the server, and returns when the
mirror has seen it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, Any, cast

from moat_kv.client import results, writes
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path, element_key
from moat_kv.path_element import Element

if TYPE_CHECKING:
    from moat_kv.client.client import Client
    from moat_kv.client.mirror import ClientRoot


#: What all entries without children share, so that a leaf costs less; never changed.
_NO_CHILDREN: dict[Any, ClientEntry] = {}


class ClientEntry:
    """One entry of a mirror.

    `value` is NotGiven if it has none; `rev` is 0 if it never had one. An entry without a value is
    there as long as it has children, or somebody holds it.
    """

    child_type: Any = None
    """The class of children: a subclass of `ClientEntry`, or a method that is given the child's
    name and returns one. By default children are of their parent's class; a root's are
    `ClientEntry`."""

    # A mirror has many of these; subclasses need not bother.
    __slots__ = (
        "__weakref__",
        "_children",
        "_epoch",
        "_path",
        "_told_in",
        "at",
        "name",
        "parent",
        "rev",
        "root",
        "value",
    )

    def __init__(self, parent: ClientEntry | None, name: Element, root: ClientRoot) -> None:
        self.parent = parent
        self.name = name
        self.root = root
        self.value: Any = NotGiven
        self.rev = 0
        self.at: float | None = None
        self._path: Path | None = None
        self._children = _NO_CHILDREN
        self._epoch = ""
        # Which fetch of the root has told this value.
        self._told_in = 0

    @property
    def path(self) -> Path:
        """Relative to the root."""
        path = self._path
        if path is None:
            path = self.parent.path / self.name if self.parent is not None else Path()
            self._path = path
        return path

    @property
    def absolute(self) -> Path:
        """The path in the tree."""
        return self.root.base + self.path

    @property
    def pending(self) -> bool:
        """Whether the value is on the server, but not in its network yet."""
        return bool(self.root.pending_ids) and self.absolute in self.root.pending_ids

    @property
    def client(self) -> Client:
        return self.root.own_client

    @property
    def chain(self) -> results.Chain | None:
        """Token for "only if nobody has written since".

        None where there is no value; `update(chain=None)` means "only if there still is none".
        """
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
                child = entry.new_child(name)
            entry = child
        return entry

    # Writing ------------------------------------------------------------------------------------

    async def update(self, value: Any, *, wait: bool = True, **options: Any) -> results.Result:
        """Write the value. `wait`: return when the mirror has seen it.

        `options` and errors are those of `Client.set`.
        """
        result = await self.client.set(self.absolute, value, **options)
        if wait:
            await self._wait_for(result)
        return result

    async def set_value(self, value: Any) -> None:
        """Write the value, and wait until the mirror has seen it."""
        await self.update(value)

    async def delete(self, *, wait: bool = True, **options: Any) -> results.Result:
        """Delete the value; children stay. `options` and errors are those of `Client.delete`."""
        result = await self.client.delete(self.absolute, **options)
        if wait:
            await self._wait_for(result)
        return result

    async def _wait_for(self, result: results.Result) -> None:
        root, rev, path = self.root, result.rev, self.absolute
        if result.pending:
            await root.wait_for(lambda: root.pending_ids.get(path) == result.id or self.rev > rev)
        else:
            await root.wait_for(lambda: self.rev >= rev or root.seen_rev >= rev)

    # Applying -----------------------------------------------------------------------------------

    def _child_class(self, name: Element) -> type[ClientEntry]:
        kind = self.child_type
        if kind is None:
            kind = type(self) if self.parent is not None else ClientEntry
        elif not isinstance(kind, type):
            kind = kind(name)
        return cast("type[ClientEntry]", kind)

    def new_child(self, name: Element) -> ClientEntry:
        """An entry that is known to the root, but not a part of the mirror yet."""
        path = self.path / name
        entry = self.root.loose.get(path)
        if entry is None:
            entry = self._child_class(name)(self, name, self.root)
            self.root.loose[path] = entry
        return entry

    def adopt(self, key: Any, name: Element) -> ClientEntry:
        """A new child as a part of the mirror: one that somebody holds, or a fresh one."""
        loose = self.root.loose
        entry = loose.pop(self.path / name, None) if loose else None
        if entry is None:
            entry = self._child_class(name)(self, name, self.root)
        if self._children is _NO_CHILDREN:
            self._children = {}
        self._children[key] = entry
        return entry

    def detach(self) -> None:
        """Leave the mirror if there is nothing here; so do parents that are empty then."""
        entry = self
        while entry.parent is not None and entry.value is NotGiven and not entry._children:
            if entry.parent._children.pop(element_key(entry.name), None) is None:
                return
            # Whoever holds it goes on seeing it if a value comes again.
            self.root.loose[entry.path] = entry
            entry = entry.parent

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.absolute} {self.value!r}>"
