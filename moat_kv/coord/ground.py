"""One logic for async and blocking users: what code stands on that calls its users' code.

Such code (updates, caches, aggregates) is written once, as coroutines that wait for nothing but a
`Ground`: `io` has something done in the client's event loop, `user` calls what the user wrote. In
an event loop both are awaited. For plain threads `io` blocks on the loop's thread and `user` calls
right here, so the coroutine never really waits, and `drive` runs it to its end like a function.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import anyio

from moat_kv import blocking

_T = TypeVar("_T")


class Ground(Protocol):
    """Where code runs."""

    async def io(self, function: Callable[..., Awaitable[_T]], *args: Any, **kwargs: Any) -> _T:
        """Call an async function in the client's event loop."""
        ...

    async def user(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a user's function, which may be async only where there is an event loop."""
        ...

    def mutex(self) -> Mutex:
        """Something that one task, or one thread, has at a time."""
        ...


class Mutex(Protocol):
    """`async with ground.mutex()`."""

    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *exc_info: Any) -> Any: ...


class AsyncGround:
    """In an event loop, which is the client's."""

    async def io(self, function: Callable[..., Awaitable[_T]], *args: Any, **kwargs: Any) -> _T:
        return await function(*args, **kwargs)

    async def user(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    def mutex(self) -> Mutex:
        return anyio.Lock()


class BlockingGround:
    """In a plain thread; the client's event loop is in another one."""

    def __init__(self, client: blocking.Client) -> None:
        self._client = client

    async def io(self, function: Callable[..., Awaitable[_T]], *args: Any, **kwargs: Any) -> _T:
        return self._client.run(function, *args, **kwargs)

    async def user(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            name = getattr(function, "__qualname__", repr(function))
            raise TypeError(f"{name} is async; without an event loop it must be a plain function")
        return result

    def mutex(self) -> Mutex:
        return _ThreadMutex()


class _ThreadMutex:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        self._lock.acquire()

    async def __aexit__(self, *exc_info: Any) -> None:
        self._lock.release()


def drive(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that stands on a `BlockingGround` to its end; its result, or its error."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    coroutine.close()
    raise RuntimeError("this waits for an event loop, and there is none here")
