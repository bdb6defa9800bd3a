"""`State`: what users enter to check models out and commit them.

    with State(User) as state:
        user = state.checkout(User)
        user.name = "x"
        state.commit(user)

`async with` gives an `AsyncState`, whose `load` and `commit` are awaited. Both are thin: what they
do is in `loading`, `entering` and `committing`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from moat_kv.coord import ground
from moat_kv.state import committing, entering, grounds, loading, loops, metrics, registry, venues
from moat_kv.state.model import Instance, StateModel
from moat_kv.state.slot import Slot, Subscriber

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger(__name__)

_M = TypeVar("_M", bound=StateModel)


class Subscription:
    """What `subscribe` returns."""

    def __init__(self, slot: Slot, subscriber: Subscriber) -> None:
        self._slot = slot
        self._subscriber = subscriber

    def cancel(self) -> None:
        """No further change is told; one that is just being told is told to its end."""
        self._slot.unsubscribe(self._subscriber)


class _Common:
    """What needs no waiting."""

    _models: registry.Models
    _slots: tuple[Slot, ...]

    @overload
    def checkout(self, model: type[_M], id: str | int | None = None) -> _M: ...
    @overload
    def checkout(self, model: Instance[_M]) -> _M: ...
    def checkout(self, model: Any, id: str | int | None = None) -> Any:
        """A copy of the present state. Raises ModelNotFound.

        Inside of a State for this model it is the newest there is, and nobody else changes it.
        """
        began = time.perf_counter()
        slot = self._models.find(model if id is None else Instance(model, id))
        made = slot.copy()
        slot.metrics.checkout_latency.observe(time.perf_counter() - began)
        return made

    def subscribe(
        self,
        model: registry.Which,
        callback: Callable[..., Any],
        *,
        attribute: str | tuple[str, ...] = (),
        old: bool = False,
    ) -> Subscription:
        """Have a callback, plain or async, called with each new state, a copy of its own.

        `attribute`: only if one of these has changed. `old`: with the state before as well, which
        is None where it is not known. If the state was recovered, from a file or the network, it is
        told of that at once. It is called in the event loop that runs here, as long as that runs,
        and else in one background thread; in the order of states, and never two at a time for one
        model. If it raises, that is logged and counted.

        Raises ModelNotFound, and AttributeError for an attribute that the model does not have.
        """
        attributes = (attribute,) if isinstance(attribute, str) else attribute
        slot = self._models.find(model)
        if not callable(callback):
            raise TypeError(f"a subscriber is something to call, not {callback!r:.80}")
        for name in attributes:
            getattr(slot.present, name)
        subscriber = Subscriber(
            venue=venues.here(), callback=callback, attributes=attributes, old=old
        )
        slot.subscribe(subscriber)
        return Subscription(slot, subscriber)

    def reset(self) -> None:
        """Forget all models of this process, and delete their files. Shared entries stay."""
        logger.info("all state models are forgotten")
        for slot in self._models.clear():
            if slot.file is not None:
                slot.file.clear()
            slot.entry = None


class State(_Common):
    """A context in which models are locked: `with State(User, Device) as state`.

    `models`: classes, or `Class.instance(id)` for one of several; they are locked in one fixed
    order. Without any nothing is locked. `timeout_s`: how long to wait for the locks; None: alone
    for ever, shared 500 s. `within`: the registry, for programs that have several.

    Raises ModelNotFound. On entry AlreadyHeld, LockOrderError, LockTimeout, WouldDeadlock; for
    shared models Detached, and RuntimeError for a plain `with` inside of a running event loop.
    """

    def __init__(
        self,
        *models: registry.Which,
        timeout_s: float | None = None,
        within: registry.Models | None = None,
    ) -> None:
        found = registry.models if within is None else within
        self._models = found
        self._timeout_s = timeout_s
        self._task: object = None
        if len(models) == 1:
            self._slots = (found.find(models[0]),)
        else:
            slots = dict.fromkeys(found.find(each) for each in models)
            self._slots = tuple(sorted(slots, key=lambda slot: slot.order))

    def __enter__(self) -> State:
        if self._slots:
            self._task = task = self._begin()
            try:
                ground.drive(entering.enter(grounds.BLOCKING, self._slots, task, self._timeout_s))
            except BaseException:
                self._task = None
                raise
        metrics.active_contexts.add(1)
        return self

    def _begin(self) -> object:
        if self._task is not None:
            raise RuntimeError("this State is entered already; make another one")
        return loops.current_task()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        metrics.active_contexts.add(-1)
        if self._slots:
            task, self._task = self._task, None
            ground.drive(entering.leave(grounds.BLOCKING, self._slots, task))

    async def __aenter__(self) -> AsyncState:
        if self._slots:
            self._task = task = self._begin()
            try:
                await entering.enter(grounds.ASYNC, self._slots, task, self._timeout_s)
            except BaseException:
                self._task = None
                raise
        metrics.active_contexts.add(1)
        return AsyncState(self._models, self._slots)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        metrics.active_contexts.add(-1)
        if self._slots:
            task, self._task = self._task, None
            await entering.leave(grounds.ASYNC, self._slots, task)

    def load(self, model: _M) -> _M:
        """Make a model known, with the state that is kept of it, if there is any; it is returned.

        The network goes before the file. A damaged file is set aside. Raises
        UninitializedStateError, SchemaTooNew, RefusedValue, Detached.
        """
        ground.drive(loading.load(grounds.BLOCKING, self._models, model))
        return model

    def commit(self, model: StateModel, cache: bool | None = None, *, force: bool = False) -> None:
        """Make a checked-out copy the state.

        `cache`: keep it as a file; None: as the class's `cached` says. `force`: also if it is not
        made from the present state.

        Raises ModelNotFound; StaleModel, with both versions, if the state has changed since the
        checkout, or there was none and the model is not locked here; what its preconditions and
        `apply` raise; CacheError; for shared models Detached, StaleFence (the lock was lost), and
        Unknown (whether it happened could not be found out).
        """
        slot = self._models.find_for(model)
        ground.drive(
            committing.commit(
                grounds.BLOCKING, slot, model, held=self._held(), cache=cache, force=force
            )
        )

    def _held(self) -> tuple[Slot, ...]:
        return self._slots if self._task is not None else ()


class AsyncState(_Common):
    """What `async with State(...)` gives."""

    def __init__(self, models: registry.Models, slots: tuple[Slot, ...]) -> None:
        self._models = models
        self._slots = slots

    async def load(self, model: _M) -> _M:
        """See `State.load`."""
        await loading.load(grounds.ASYNC, self._models, model)
        return model

    async def commit(
        self, model: StateModel, cache: bool | None = None, *, force: bool = False
    ) -> None:
        """See `State.commit`."""
        slot = self._models.find_for(model)
        await committing.commit(
            grounds.ASYNC, slot, model, held=self._slots, cache=cache, force=force
        )
