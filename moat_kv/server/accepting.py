"""Accepting clients: goes on whatever happens to a single one, or to the supply of descriptors.

Called by `server` for each listener. The listeners' own `serve` would end all clients when one
`accept` fails, which it does when the process may open no more files.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio
import anyio.abc

logger = logging.getLogger(__name__)

Serve = Callable[[Any], Coroutine[Any, Any, None]]

#: After an `accept` that failed the next one comes so many seconds later.
PAUSE_S = 0.1
#: So many descriptors are left to the engine, to listeners and to whatever else is open.
RESERVE = 48
#: A connection from which nothing comes is asked after so many seconds whether there is still
#: somebody, so often, each so many seconds after the other; else it is closed.
KEEPALIVE_S = (60, 5, 10)


def connection_limit() -> int:
    """How many clients can be served at the same time: as many as files may be open, nearly."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if soft == resource.RLIM_INFINITY else max(1, soft - RESERVE)


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
            stream = await listener.accept()
        except (OSError, anyio.BrokenResourceError) as exc:
            # The client has gone already, or no file can be opened; anyio closes what it opened.
            if not failing:
                logger.warning("cannot take a connection: %s", exc.__cause__ or exc)
            failing = True
            await anyio.sleep(PAUSE_S)
            continue
        failing = False
        _keep_alive(stream)
        tasks.start_soon(serve, stream)


def _keep_alive(stream: anyio.abc.SocketStream) -> None:
    """Have the system find out when the machine at the other end has vanished."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    if raw.family == socket.AF_UNIX:
        return
    # A system that does not know one of these does without it.
    with contextlib.suppress(OSError, AttributeError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle_s, count, interval_s = KEEPALIVE_S
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_s)
