"""Aggregates for plain threads."""

from __future__ import annotations

from typing import Any, ClassVar

from moat_kv.coord import modelling, update


class Model(modelling.ModelLogic, update.Update):
    """Derive from it, declare fields, say `on_complete`; `add` values, and end the session.

    Goes into an `LruCache` as other updates do.
    """

    kind: ClassVar[str] = "Model"

    def add(self, **values: Any) -> None:
        """Merge values. TypeError if one does not fit, RuntimeError if the session is over."""
        self.refresh(self._of(values))
