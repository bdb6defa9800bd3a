"""Updates: what is merged while a resource is held, and executed when nobody holds it any more.

The base of `moat_kv.coord.Update` and of its async form, which users derive their own from: they
say what the state is, how two are merged, and what is executed. When that happens is up to
`course`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from moat_kv.coord import course

if TYPE_CHECKING:
    from moat_kv.coord.aio.process import Process
    from moat_kv.coord.ground import Ground


class Host(Protocol):
    """The process that an update belongs to: an async or a blocking one."""

    @property
    def asynchronous(self) -> Process: ...
    @property
    def ground(self) -> Ground: ...
    def know(self, kind: type[UpdateLogic]) -> None: ...


class UpdateLogic:
    """What async and blocking updates share.

    `_id`: of the object that is updated; with `collection` and `database` (texts, or classes whose
    names are used) it is the resource. `spec` and `doc`: whatever `execute` needs, mappings that
    msgpack can carry; what the update sets is in `doc`. `init_cache`: keep the state in the tree
    while it is in a cache, so that it survives this process. `block`: wait for locks.
    `hard_session`, `soft_session`: for how long others are waited for, in seconds since the update
    was made, and since something was merged into it the last time.
    """

    #: Which states belong together; the class's name, if it does not say otherwise.
    kind: ClassVar[str] = "Update"
    #: Merging needs no lock, on the server neither.
    conflict_free: ClassVar[bool] = False

    def __init__(
        self,
        process: Host,
        _id: Any,
        database: str | type = "test",
        collection: str | type = "test",
        spec: Mapping[str, Any] | None = None,
        doc: Mapping[str, Any] | None = None,
        init_cache: bool = False,
        block: bool = True,
        hard_session: float = 1800,
        soft_session: float = 900,
    ) -> None:
        self.process = process
        self._id = _id
        self.database = _name(database)
        self.collection = _name(collection)
        self.spec: Any = {} if spec is None else spec
        self.doc: Any = {} if doc is None else doc
        self.init_cache = init_cache
        self.block = block
        self.hard_session = hard_session
        self.soft_session = soft_session
        #: Of the transaction that is to be done, the same if that is tried again; None before.
        self.execution_id: str | None = None
        self._start(is_new=True)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" not in cls.__dict__:
            cls.kind = cls.__qualname__

    def _start(self, *, is_new: bool) -> None:
        """Begin its course; one that is not new was another process' before."""
        host = self.process
        self._course = course.Course(
            self,
            host.asynchronous,
            host.ground,
            hard_s=self.hard_session,
            soft_s=self.soft_session,
        )
        host.know(type(self))

    @property
    def resource_id(self) -> str:
        """The resource that it is an update of."""
        return f"{self.database}.{self.collection}.{self._id}"

    # For users to define ------------------------------------------------------------------------

    def state(self) -> Mapping[str, Any]:
        """The attributes that the user's class has set itself, by name."""
        return {}

    def clear(self) -> Mapping[str, Any] | None:
        """Set those attributes so that executing changes nothing, or return what to set them to."""
        return None

    def merge(self, other: Any) -> Any:
        """Take what another update of the same kind and resource has into this one."""
        raise NotImplementedError(f"{type(self).__name__} has to say how two are merged")

    def execute(self) -> Any:
        """Write this update where it belongs.

        What it raises is kept and tried again, with the same `execution_id`.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say what is executed")

    # The session --------------------------------------------------------------------------------

    def is_expired(self) -> bool:
        """Its time is up, so its end does not wait for others."""
        return self._course.is_expired

    def force_expiry(self) -> None:
        """Let its time be up."""
        self._course.forced = True

    # Its state in the tree ----------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "_id": self._id,
            "database": self.database,
            "collection": self.collection,
            "spec": self.spec,
            "doc": self.doc,
            "own": dict(self.state()),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._id = state["_id"]
        self.database = state["database"]
        self.collection = state["collection"]
        self.spec = state["spec"]
        self.doc = state["doc"]
        for name, value in state["own"].items():
            setattr(self, name, value)

    async def _clear(self) -> None:
        self.doc = {}
        for name, value in (self.clear() or {}).items():
            setattr(self, name, value)

    def _sibling(self, state: Mapping[str, Any]) -> Self:
        """An update with that state, as it was stored by this or another process."""
        return self._made(self.process, state)

    @classmethod
    def _made(cls, process: Host, state: Mapping[str, Any]) -> Self:
        """As `_sibling`. The user's `__init__` is not called: what it needs is not known."""
        made = cls.__new__(cls)
        made.process = process
        made.init_cache, made.block = False, True
        made.hard_session, made.soft_session = 1800, 900
        made.execution_id = None
        made._restore(state)
        made._start(is_new=False)
        return made


class ConflictFree(UpdateLogic):
    """What conflict-free updates share, async and blocking ones."""

    conflict_free: ClassVar[bool] = True

    def merge(self, other: UpdateLogic) -> None:
        """Merge the document and the own attributes of another one by their types."""
        self.doc = combined(self.doc, other.doc)
        mine = self.state()
        for name, value in other.state().items():
            setattr(self, name, combined(mine[name], value) if name in mine else value)


def _name(given: str | type) -> str:
    return given if isinstance(given, str) else given.__name__


def combined(old: Any, new: Any) -> Any:
    """Two values merged as conflict-free updates do: by their type.

    Numbers are added, lists joined, mappings merged, value by value; of others the new one is left.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        merged = dict(old)
        for key, value in new.items():
            merged[key] = combined(merged[key], value) if key in merged else value
        return merged
    if isinstance(old, list) and isinstance(new, list):
        return [*old, *new]
    if _is_number(old) and _is_number(new):
        return old + new
    return new


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
