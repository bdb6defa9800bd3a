"""From a URL to a client, and its end in the right order: `open_client`."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio

from moat_kv import config as config_module
from moat_kv import errors
from moat_kv.client import address, client, link, results, shared


@asynccontextmanager
async def open_client(
    url: str | Sequence[str] | None = None,
    *,
    name: str | None = None,
    config: config_module.Config | None = None,
    connect_timeout_s: float | None = None,
    request_timeout_s: float | None = None,
    reconnect: bool = True,
    wait: bool = False,
    seen: results.Mark | None = None,
) -> AsyncIterator[client.Client]:
    """Connect to a server: `async with open_client() as client`.

    `url`: `tcp://host:port` or `unix:///path`, or several; None: the configuration's, else those in
    MOAT_KV_URL, else port 27586 of this machine. `name`: for logs; by default host and process.
    `connect_timeout_s` (default 10): for the first connection. `request_timeout_s` (default 60):
    for each request. `reconnect`: find another line whenever one breaks. `wait`: go on trying for
    the whole `connect_timeout_s`, instead of giving up when no server has answered. `seen`: what
    somebody else has seen; a server that has not come so far yet is not taken.

    Raises CannotConnect, BadConfig. What the body raises passes as it is; if a task in the client's
    `task_group` fails, the body is cancelled and the failures come as an exception group.
    """
    addresses = address.resolve(url, config)
    config = config or config_module.Config()
    settings = config.client
    link_ = link.Link(
        addresses,
        name=name or settings.name or f"{socket.gethostname()}:{os.getpid()}",
        connect_timeout_s=_limit(
            "connect_timeout_s", connect_timeout_s, settings.connect_timeout_s
        ),
        request_timeout_s=_limit(
            "request_timeout_s", request_timeout_s, settings.request_timeout_s
        ),
        reconnect=reconnect,
        seen=seen,
    )
    async with opened(link_, config, wait=wait) as made:
        yield made


@asynccontextmanager
async def opened(
    link_: link.Link, config: config_module.Config, *, wait: bool = False
) -> AsyncIterator[client.Client]:
    """A client over a link that is not connected yet, to the end of both. Raises CannotConnect."""
    line = await link_.connect(wait=wait)
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as own_tasks:
            try:
                own_tasks.start_soon(link_.keep, line)
                await link_.ready.wait()
                async with anyio.create_task_group() as task_group:
                    common = shared.Shared(link_, config, own_tasks, task_group)
                    try:
                        yield client.Client(common)
                    except (Exception, KeyboardInterrupt, SystemExit) as exc:
                        # Kept out of the task groups, which would wrap it.
                        failure = exc
                    task_group.cancel_scope.cancel()
            finally:
                own_tasks.cancel_scope.cancel()
                link_.close()
    except BaseExceptionGroup as group:
        if failure is None:
            raise
        raise BaseExceptionGroup(group.message, [failure, *group.exceptions]) from None
    finally:
        # Already closed, unless it never came to be served.
        await anyio.aclose_forcefully(line.stream)
    if failure is not None:
        raise failure


def _limit(name: str, given: float | None, configured: float) -> float:
    limit_s = configured if given is None else given
    if not limit_s > 0:
        raise errors.BadConfig(name, "seconds, above 0")
    return limit_s
