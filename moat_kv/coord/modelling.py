"""Declared aggregates: a class with fields, whose values are merged all over the network.

The base of `moat_kv.coord.Model` and of its async form. An aggregate is a conflict-free update: it
is merged without locks, and when the last process has ended its session, `on_complete` is called
there with the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from moat_kv import codec
from moat_kv.coord import fields, updating


class ModelLogic(updating.UpdateLogic):
    """What async and blocking aggregates share.

    `_id`: of the aggregate; those of the same class and id are one, in all processes. `values`: by
    the fields' names. The other options are those of an `Update`. Raises TypeError for a value that
    does not fit its field, and for a name that is no field's.
    """

    conflict_free: ClassVar[bool] = True
    #: By name.
    fields: ClassVar[Mapping[str, fields.Field]] = {}

    def __init__(
        self,
        process: updating.Host,
        _id: Any,
        *,
        init_cache: bool = False,
        block: bool = True,
        hard_session: float = 1800,
        soft_session: float = 900,
        **values: Any,
    ) -> None:
        super().__init__(
            process,
            _id,
            database="model",
            collection=self.kind,
            doc=self._taken(values),
            init_cache=init_cache,
            block=block,
            hard_session=hard_session,
            soft_session=soft_session,
        )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = {name: each for name, each in vars(cls).items() if isinstance(each, fields.Field)}
        for name in own:
            if name.startswith("_") or hasattr(ModelLogic, name):
                raise TypeError(f"a field cannot be called {name}, which updates have already")
        cls.fields = {**cls.fields, **own}

    def _taken(self, values: Mapping[str, Any]) -> dict[str, Any]:
        for name in values:
            if name not in self.fields:
                known = ", ".join(self.fields)
                raise TypeError(f"{type(self).__name__} has no field {name!r}; it has {known}")
        return {
            name: field.taken(values[name]) if name in values else field.start()
            for name, field in self.fields.items()
        }

    def _of(self, values: Mapping[str, Any]) -> Self:
        """One that has just these values, to be merged."""
        return self._sibling({**self._state(), "doc": self._taken(values)})

    @property
    def values(self) -> dict[str, Any]:
        """What there is in this one now, by the fields' names, and by attribute."""
        shown = {name: getattr(self, name) for name in self.fields}
        return codec.AttrDict(shown)

    # As an update ---------------------------------------------------------------------------------

    def clear(self) -> Mapping[str, Any]:
        return {"doc": self._taken({})}

    def merge(self, other: ModelLogic) -> None:
        self.doc = {
            name: field.merged(self.doc.get(name, field.start()), other.doc[name])
            for name, field in self.fields.items()
            if name in other.doc
        } | {name: state for name, state in self.doc.items() if name not in other.doc}

    def execute(self) -> Any:
        return self.on_complete(codec.AttrDict(self.values))

    def on_complete(self, total: Any) -> Any:
        """The session of all is over; `total` has the network's values, by name and attribute.

        Called once for each session. What it raises is kept and tried again, with the same
        `execution_id`; whoever stores that in its transaction gets exactly once even if the process
        dies in the middle of it.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say what is done with the whole")
