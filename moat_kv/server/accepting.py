"""Accepting clients: goes on whatever happens to a single one, or to the supply of descriptors.

Called by `server` for each listener. The listeners' own `serve` would end all clients when one
`accept` fails, which it does when the process may open no more files.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio
import anyio.abc

from moat_kv import transport

logger = logging.getLogger(__name__)

Serve = Callable[[Any], Coroutine[Any, Any, None]]

#: After an `accept` that failed the next one comes so many seconds later.
PAUSE_S = 0.1
#: What the system says when it will not open one more, whoever the client is.
_NO_SUPPLY = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: So many descriptors are left to the engine, to listeners and to whatever else is open; and so
#: many are a connection's.
RESERVE = 48
PER_CONNECTION = 2
#: A connection from which nothing comes is asked after so many seconds whether there is still
#: somebody, so often, each so many seconds after the other; else it is closed.
KEEPALIVE_S = (60, 5, 10)


def connection_limit() -> int:
    """How many clients can be served at the same time, by the number of files that may be open."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        1_000_000 if soft == resource.RLIM_INFINITY else max(1, (soft - RESERVE) // PER_CONNECTION)
    )


async def accept_from(
    listeners: Sequence[anyio.abc.Listener[Any]], serve: Serve, tasks: anyio.abc.TaskGroup
) -> None:
    """Start a task for each stream that comes, until cancelled."""
    for listener in listeners:
        inner = getattr(listener, "listeners", None)
        if inner is not None:
            await accept_from(inner, serve, tasks)
        elif isinstance(listener, anyio.abc.SocketListener):
            tasks.start_soon(_accept, listener, serve, tasks)
        else:
            tasks.start_soon(listener.serve, serve)


async def _accept(
    listener: anyio.abc.SocketListener, serve: Serve, tasks: anyio.abc.TaskGroup
) -> None:
    failing = False
    while True:
        try:
            stream = await transport.accept(listener)
        except (OSError, anyio.BrokenResourceError) as exc:
            if _number_of(exc) not in _NO_SUPPLY:
                logger.debug("a client was gone before it was served: %s", exc)
                continue
            if not failing:
                logger.warning("cannot take connections: %s", exc.__cause__ or exc)
            failing = True
            await anyio.sleep(PAUSE_S)
            continue
        failing = False
        _set_up(stream)
        tasks.start_soon(serve, stream)


def _number_of(exc: BaseException) -> int | None:
    """The system's number of an error, which anyio may have wrapped."""
    inner = exc.__cause__ if isinstance(exc, anyio.BrokenResourceError) else exc
    return inner.errno if isinstance(inner, OSError) else None


def _set_up(stream: anyio.abc.ByteStream) -> None:
    """Have the system find out when the machine at the other end has vanished, and send at once."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    if raw.family == socket.AF_UNIX:
        return
    with contextlib.suppress(OSError):
        # A reply must not wait until the client has acknowledged the watch event before it (40 ms).
        # The event loop does this only for sockets that name their protocol, which ours do not.
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A system that does not know one of these does without it.
    with contextlib.suppress(OSError, AttributeError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle_s, count, interval_s = KEEPALIVE_S
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_s)
