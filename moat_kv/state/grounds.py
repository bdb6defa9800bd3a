"""Where a State is used from, a plain thread or an event loop: the one thing that differs.

`loading`, `entering` and `committing` are written once, as coroutines that wait for nothing but
what is here. On `AsyncGround` these really wait; on `BlockingGround` they stop the thread instead,
so that `coord.ground.drive` can run the whole coroutine at once, without an event loop. Other than
coordination's grounds these are of no client: a model need not be shared, and may be by any client.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio
import anyio.to_thread

from moat_kv.state import loops

if TYPE_CHECKING:
    from moat_kv.state.locks import ModelLock
    from moat_kv.state.reach import Reach

_T = TypeVar("_T")

#: So long a State waits at its end for the client's event loop, in seconds.
FINISH_S = 10.0
#: So long user code may take to bring back a state, in seconds.
RESTORE_S = 60.0


class Ground(Protocol):
    """What the logic waits for."""

    async def lock(self, lock: ModelLock, timeout_s: float | None) -> bool:
        """Wait for a model's lock; False: not in that time."""

    async def io(self, reach: Reach, function: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        """Run an async function in a client's event loop."""

    async def finish(self, reach: Reach, function: Callable[[], Awaitable[None]]) -> None:
        """The same for what cleans up, even if cancelled; waited for at most `FINISH_S`."""

    async def user(self, result: Any, *, shield: bool = False) -> None:
        """Await what user code has returned, if that is needed.

        `shield`: even if cancelled, at most for `RESTORE_S`; raises TimeoutError then.
        """

    async def disk(self, function: Callable[..., None], *args: Any) -> None:
        """Run a plain function that waits for the disk."""


class BlockingGround:
    """A thread."""

    async def lock(self, lock: ModelLock, timeout_s: float | None) -> bool:
        return lock.acquire(timeout_s, in_loop=loops.has_loop())

    async def io(self, reach: Reach, function: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        return reach.call(function, *args)

    async def finish(self, reach: Reach, function: Callable[[], Awaitable[None]]) -> None:
        reach.call(function)

    async def user(self, result: Any, *, shield: bool = False) -> None:
        if not inspect.isawaitable(result):
            return
        if loops.has_loop():
            if inspect.iscoroutine(result):
                result.close()
            raise RuntimeError(
                "an async `apply` would stop the event loop that runs here; use `async with`"
            )
        anyio.run(_awaited, result)

    async def disk(self, function: Callable[..., None], *args: Any) -> None:
        function(*args)


class AsyncGround:
    """An event loop."""

    async def lock(self, lock: ModelLock, timeout_s: float | None) -> bool:
        return await lock.acquire_async(timeout_s)

    async def io(self, reach: Reach, function: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        return await reach.acall(function, *args)

    async def finish(self, reach: Reach, function: Callable[[], Awaitable[None]]) -> None:
        with anyio.move_on_after(FINISH_S, shield=True):
            await reach.acall(function)

    async def user(self, result: Any, *, shield: bool = False) -> None:
        if inspect.isawaitable(result):
            with anyio.fail_after(RESTORE_S if shield else None, shield=shield):
                await result

    async def disk(self, function: Callable[..., None], *args: Any) -> None:
        await anyio.to_thread.run_sync(function, *args)


async def _awaited(result: Awaitable[Any]) -> None:
    await result


BLOCKING = BlockingGround()
ASYNC = AsyncGround()
