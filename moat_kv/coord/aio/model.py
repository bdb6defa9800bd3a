"""Aggregates for who has an event loop; `on_complete` may be async."""

from __future__ import annotations

from typing import Any, ClassVar

from moat_kv.coord import modelling
from moat_kv.coord.aio import update


class Model(modelling.ModelLogic, update.Update):
    """Derive from it, declare fields, say `on_complete`; `add` values, and end the session.

    Goes into an `LruCache` as other updates do.
    """

    kind: ClassVar[str] = "Model"

    async def add(self, **values: Any) -> None:
        """Merge values. TypeError if one does not fit, RuntimeError if the session is over."""
        await self.refresh(self._of(values))
