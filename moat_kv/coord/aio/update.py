"""Updates for who has an event loop; `merge` and `execute` may be async."""

from __future__ import annotations

from typing import ClassVar

from moat_kv.coord import updating


class Update(updating.UpdateLogic):
    """Derive from it, say `merge` and `execute`, and put what comes into an `LruCache`.

    It refers to its resource from when it is first put into a cache, refreshed or ended.
    """

    kind: ClassVar[str] = "Update"

    async def cache(self) -> None:
        """Keep its state in the tree from now on; what `init_cache` does in a cache."""
        self.init_cache = True
        await self._course.begin()

    async def refresh(self, other: updating.UpdateLogic) -> None:
        """Merge another one into this, whose session goes on. RuntimeError if it is over.

        With `init_cache` it is in the tree when this returns; if it raises, nothing was merged.
        """
        if not await self._course.refresh(other):
            raise RuntimeError(f"the session of {self.resource_id} is over")

    async def end_session(self, block: bool | None = None) -> bool:
        """Execute it, or leave it to those who hold the resource; whether it was executed.

        Raises what `execute` raises: it is kept and tried again in the background, and may be
        ended again here. AlreadyLocked, Detached, Disconnected: it goes on.
        """
        return await self._course.end(self.block if block is None else block)


class ConflictFreeUpdate(updating.ConflictFree, Update):
    """One whose parts are merged by their types: numbers added, lists joined, mappings merged.

    What waits for others is gathered by the server (`patch`). Only `execute` has to be said.
    """

    kind: ClassVar[str] = "ConflictFreeUpdate"
