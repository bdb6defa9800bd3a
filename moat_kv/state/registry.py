"""The models that are loaded in this process.

`models` is the one that every `State` uses; tests and programs that stand for several processes
make further ones. It finds slots and makes them; it does not lock, commit or talk to servers.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeAlias

from moat_kv.state import errors, settling, slot
from moat_kv.state.model import Instance, StateModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moat_kv.state.sharing import Sharing

#: What names a loaded model: its class, or one of several of a class.
Which: TypeAlias = "type[StateModel] | Instance[Any]"


class Models:
    """Loaded models, by class and id. Any thread may use it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._slots: dict[type[StateModel], dict[str | int | None, slot.Slot]] = {}
        #: What shares these models, in the order in which it was attached.
        self.sharings: tuple[Sharing, ...] = ()

    def find(self, which: Which) -> slot.Slot:
        """The slot of a class's one model, or of one of several. Raises ModelNotFound."""
        if isinstance(which, type):
            by_id = self._slots.get(which)
            if by_id:
                if None in by_id:
                    return by_id[None]
                if len(by_id) == 1:
                    return next(iter(by_id.values()))
                raise errors.ModelNotFound(
                    which.__qualname__, list(by_id), hint="there are several; name one's id"
                )
            raise errors.ModelNotFound(_label(which), [])
        if not isinstance(which, Instance):
            raise TypeError(
                f"a model is named by its class or CLASS.instance(id), not {which!r:.80}"
            )
        by_id = self._slots.get(which.cls, {})
        found = by_id.get(which.id)
        if found is None:
            raise errors.ModelNotFound(f"{_label(which.cls)}[{which.id!r}]", list(by_id))
        return found

    def find_for(self, given: StateModel) -> slot.Slot:
        """The slot that a model belongs to. Raises ModelNotFound, TypeError."""
        cls = type(given)
        by_id = self._slots.get(cls)
        if by_id is None:
            refuse_other(given)
            raise errors.ModelNotFound(_label(cls), [])
        found = by_id.get(given.id)  # named ones go first
        if found is None:
            found = self.find(Instance(cls, given.id) if given._moat_named else cls)
        return found

    def add(self, given: StateModel) -> tuple[slot.Slot, bool]:
        """The slot for a model that is being loaded, and whether it is new and without a state."""
        cls, id_ = type(given), given.id if given._moat_named else None
        with self._mutex:
            by_id = self._slots.setdefault(cls, {})
            found = by_id.get(id_)
            if found is not None:
                return found, False
            made = slot.Slot(cls, id_)
            return made, True

    def keep(self, made: slot.Slot) -> None:
        """A new slot has its state and can be found."""
        with self._mutex:
            self._slots[made.cls].setdefault(made.id, made)
        settling.register(made)

    def sharing_of(self, cls: type[StateModel]) -> Sharing | None:
        """What shares a class's models, if anything does."""
        for each in reversed(self.sharings):
            if each.wants(cls):
                return each
        return None

    def clear(self) -> list[slot.Slot]:
        """Forget all models; they are returned."""
        with self._mutex:
            gone = list(self)
            self._slots.clear()
        return gone

    def __iter__(self) -> Iterator[slot.Slot]:
        for by_id in list(self._slots.values()):
            yield from list(by_id.values())


def refuse_other(given: object) -> None:
    """Raises TypeError for what is no model."""
    if not isinstance(given, StateModel):
        raise TypeError(f"a model, made of a class that derives from StateModel, not {given!r:.80}")


def _label(which: object) -> str:
    return getattr(which, "__qualname__", repr(which))


models = Models()
