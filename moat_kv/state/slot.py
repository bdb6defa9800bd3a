"""One loaded model: its runtime state, lock, subscribers, file, and how it is shared.

`registry` makes slots; `committing` and `sharing` change their state through `install`, which is
the only way in. The runtime model is never handed out nor changed: what is given to users is a
copy, and a new state is a new model.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moat_kv.state import cache_files, copying, delivery, locks, metrics, model, venues

if TYPE_CHECKING:
    from moat_kv.state.model import StateModel
    from moat_kv.state.shared_entry import SharedEntry


@dataclass(frozen=True, kw_only=True)
class Subscriber:
    """Who is told of changes; see `subscribing`."""

    venue: venues.Venue
    callback: Any
    attributes: tuple[str, ...]
    old: bool

    def cares(self, new: StateModel, old: StateModel | None) -> bool:
        """Whether anything changed that it asked for."""
        if not self.attributes or old is None:
            return True
        return any(getattr(new, name) != getattr(old, name) for name in self.attributes)


class Slot:
    """See the module. Any thread may use it."""

    def __init__(self, cls: type[StateModel], id: str | int | None) -> None:
        self.cls = cls
        #: None: the one of its class.
        self.id = id
        self.name = model.name_of(cls)
        self.metrics_label = cls.__qualname__
        self.label = cls.__qualname__ if id is None else f"{cls.__qualname__}[{id!r}]"
        #: The place in the one order in which all States lock.
        self.order = (self.name, "" if id is None else f"{type(id).__name__}:{id}", builtin_id(cls))
        self.lock = locks.ModelLock()
        self.metrics = metrics.ModelMetrics(self.metrics_label)
        self.has_apply = model.has_apply(cls)
        self.file: cache_files.CacheFile | None = None
        #: Where the file of one of several was before there could be several.
        self.legacy_file: cache_files.CacheFile | None = None
        self.entry: SharedEntry | None = None
        self.recovered = False
        self.subscribers: tuple[Subscriber, ...] = ()
        self.outgoing = delivery.Outgoing(self)
        # Guards the state and its revision, for moments only.
        self.mutex = threading.RLock()
        self._present: StateModel | None = None
        self._rev = 0

    @property
    def rev(self) -> int:
        """Of the runtime state: alone the number of changes, shared the entry's revision."""
        return self._rev

    @property
    def present(self) -> StateModel:
        """The runtime model; not to be changed, nor handed out."""
        assert self._present is not None
        return self._present

    def place_file(self) -> None:
        """Find out where the model is kept."""
        folder = cache_files.folder()
        if folder is None:
            self.file = self.legacy_file = None
            return
        synced = self.cls.cache_synced
        path = folder / cache_files.file_name(self.cls, self.id)
        if self.file is None or self.file.path != path:
            self.file = cache_files.CacheFile(self.label, path, synced=synced)
            if self.id is not None:
                path = folder / cache_files.file_name(self.cls, None)
                self.legacy_file = cache_files.CacheFile(self.label, path, synced=synced)

    # The state ----------------------------------------------------------------------------------

    def copy(self) -> Any:
        """A copy of the runtime state, for a user; it knows what it is made from."""
        # (one attribute read each: the state first, so that a copy is never thought newer)
        rev, present = self._rev, self._present
        assert present is not None
        while rev != self._rev:
            rev, present = self._rev, self._present
            assert present is not None
        made = copying.copy_of_object(present)
        made.__dict__["_moat_rev"] = rev
        return made

    def install(self, new: StateModel, rev: int | None, *, later: bool = False) -> int:
        """Make this the runtime state; `rev` None: the next one. Returns its revision.

        Subscribers are told; with `later`, when `Outgoing.release` is called.
        """
        with self.mutex:
            old, self._present = self._present, new
            self._rev = self._rev + 1 if rev is None else rev
            if self.subscribers and old is not None:
                self.outgoing.put(new, old, self._rev, ready=not later)
            return self._rev

    def advance(self, rev: int) -> None:
        """The same state has another revision; 0: it is not in the tree any more."""
        with self.mutex:
            self._rev = rev

    def subscribe(self, subscriber: Subscriber) -> None:
        with self.mutex:
            self.subscribers = (*self.subscribers, subscriber)
            if self.recovered:
                self.outgoing.put(self.present, None, self._rev, only=subscriber)
        self.outgoing.go_on()

    def unsubscribe(self, subscriber: Subscriber) -> None:
        with self.mutex:
            self.subscribers = tuple(each for each in self.subscribers if each is not subscriber)


builtin_id = id
