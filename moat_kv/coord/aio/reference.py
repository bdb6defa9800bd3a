"""References: how many processes use a resource, and who is the last.

Made by `Process.create_reference`. A process' references end with its session, so those of one that
died are not counted. That one is the last is decided in the log: its entry is deleted under the
resource's lock, and the deletion is refused if the lock has passed on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moat_kv import errors
from moat_kv.client import claiming
from moat_kv.coord import ground, resource, stock
from moat_kv.coord.aio import lock as lock_module

if TYPE_CHECKING:
    from moat_kv.coord.aio.process import Process
    from moat_kv.coord.holding import Holding


class Reference:
    """One use of a resource by a process; `await process.create_reference("name")` makes one.

    Its `lock()` is that of the resource, for exclusive use. One task at a time uses a reference.
    """

    def __init__(self, process: Process, holding: Holding, *, block: bool) -> None:
        self._process = process
        self._client = process.client
        self._lock: lock_module.Lock | None = None
        self._holding: Holding | None = holding
        self._base = holding.base
        self._name = holding.name
        #: What it refers to, as people know it.
        self.resource = resource.name_of(holding.name)
        #: Whether locks wait for others, unless told otherwise.
        self.block = block

    @property
    def dereferenced(self) -> bool:
        """It is over; it counts no more."""
        return self._holding is None

    def lock(
        self, block: bool | None = None, *, timeout_s: float = lock_module.BLOCK_S
    ) -> lock_module.Lock:
        """The exclusive lock of the resource: `async with reference.lock(): ...`.

        Raises AlreadyLocked when it is entered: at once without `block`, else after `timeout_s`.
        """
        wait = self.block if block is None else block
        self._lock = self._process.lock(self._name, wait, timeout_s=timeout_s)
        return self._lock

    async def count(self) -> int:
        """How many processes have references. May change at once, but for the lock's holder."""
        found = await stock.read(self._client, self._base)
        return len(set(found.references.values()))

    async def increment_times_modified(self) -> int:
        """Count a modification; how many there are now. To be called under the lock.

        Raises Unknown if the line broke, and it may have been counted.
        """
        counted = await self._client.patch(self._base / resource.TIMES, "add", 1)
        value: int = counted.value
        return value

    async def get_times_modified(self) -> int:
        """How often it was modified by all processes, since the first of these references.

        Counts what updates have left there for the last one, too.
        """
        found = await stock.read(self._client, self._base)
        return found.times + len(found.ended())

    async def dereference(
        self,
        callback: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        block: bool = True,
    ) -> bool:
        """Use it no more; whether it was the last one among all processes.

        If so `callback` (which may be async) is called with these arguments, once, while the
        resource is locked; what it raises passes. The lock is taken unless this reference holds it.

        Raises AlreadyLocked if that cannot be had; the reference goes on then.
        """
        call = functools.partial(callback, *args, **dict(kwargs or {})) if callback else None
        return await dereference(self, ground.AsyncGround(), call, block)

    # For `dereference`, which may run in another thread ------------------------------------------

    def lock_for_end(self, block: bool) -> lock_module.Lock | None:
        """The lock that is to be taken; None if this reference holds it."""
        if self._lock is not None and self._lock.held:
            return None
        return self.lock(block)

    async def drop(self) -> bool:
        """Delete the entry if this is the process' last; whether there is no other. Under lock."""
        holding, lock = self._holding, self._lock
        assert lock is not None
        if holding is None:
            return False
        if not self._process.holdings.leave(holding):
            self._holding = None
            return False
        try:
            found = await claiming.patiently(self._client, self._read, claiming.BREAKS)
            await claiming.patiently(
                self._client,
                lambda: self._client.delete(holding.path, fence=lock.guard),
                claiming.BREAKS,
            )
        except BaseException:
            self._process.holdings.rejoin(holding)
            raise
        self._holding = None
        return not found.others({holding.key})

    async def _read(self) -> stock.Stock:
        return await stock.read(self._client, self._base)

    async def forget(self) -> None:
        """Nobody refers to the resource any more, so its modifications are not counted on."""
        lock = self._lock
        assert lock is not None
        try:
            await self._client.delete(self._base / resource.TIMES, fence=lock.guard)
        except errors.StaleFence:
            return  # somebody else has begun to use it, or will


async def dereference(
    reference: Reference, on: ground.Ground, call: Callable[[], Any] | None, block: bool
) -> bool:
    """The way of a dereference; async and blocking references go it on their own ground."""
    lock = reference.lock_for_end(block)
    if lock is not None:
        await on.io(lock.acquire)
    try:
        last = await on.io(reference.drop)
        if last:
            try:
                if call is not None:
                    await on.user(call)
            finally:
                await on.io(reference.forget)
        return last
    finally:
        if lock is not None:
            await on.io(lock.release)
