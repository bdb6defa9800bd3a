"""References for plain threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moat_kv import blocking
from moat_kv.coord import ground
from moat_kv.coord import lock as lock_module
from moat_kv.coord.aio import lock as aio_lock
from moat_kv.coord.aio import reference as aio_reference

if TYPE_CHECKING:
    from moat_kv.coord.process import Process


class Reference:
    """One use of a resource by a process; `process.create_reference("name")` makes one.

    See `moat_kv.coord.aio.Reference`. One thread at a time uses a reference.
    """

    def __init__(self, process: Process, reference: aio_reference.Reference) -> None:
        self._client: blocking.Client = process.client
        self._ground = process.ground
        #: The reference in the event loop.
        self.asynchronous = reference

    @property
    def resource(self) -> str:
        return self.asynchronous.resource

    @property
    def block(self) -> bool:
        return self.asynchronous.block

    @property
    def dereferenced(self) -> bool:
        return self.asynchronous.dereferenced

    def lock(
        self, block: bool | None = None, *, timeout_s: float = aio_lock.BLOCK_S
    ) -> lock_module.Lock:
        """The exclusive lock of the resource: `with reference.lock(): ...`."""
        return lock_module.Lock(self._client, self.asynchronous.lock(block, timeout_s=timeout_s))

    def count(self) -> int:
        return self._client.run(self.asynchronous.count)

    def increment_times_modified(self) -> int:
        return self._client.run(self.asynchronous.increment_times_modified)

    def get_times_modified(self) -> int:
        return self._client.run(self.asynchronous.get_times_modified)

    def dereference(
        self,
        callback: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        block: bool = True,
    ) -> bool:
        """See `moat_kv.coord.aio.Reference.dereference`; `callback` is called in this thread."""
        call = functools.partial(callback, *args, **dict(kwargs or {})) if callback else None
        return ground.drive(aio_reference.dereference(self.asynchronous, self._ground, call, block))
