"""A client in an event loop in a thread of its own, for the blocking twins.

Used by `Process` and by `state.attach`, which their users may well forget to end: the thread does
not keep the interpreter from ending, which anyio's own does.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import anyio
from anyio.from_thread import BlockingPortal

from moat_kv import blocking, calling
from moat_kv.client import opening

logger = logging.getLogger(__name__)


@contextmanager
def open_client(
    server: blocking.Client | str | Sequence[str] | None, backend: str = "asyncio"
) -> Iterator[blocking.Client]:
    """The client that is given, which is left open, or one of its own. Raises CannotConnect."""
    if isinstance(server, blocking.Client):
        yield server
        return
    with (
        running_portal(backend) as portal,
        calling.Caller(portal, calling.wait).held(opening.open_client, server) as client,
    ):
        yield blocking.Client(portal, client)


@contextmanager
def running_portal(backend: str) -> Iterator[BlockingPortal]:
    """A portal into a new event loop, `asyncio` or `trio`, that ends with the context."""
    started: Future[BlockingPortal] = Future()
    pid = os.getpid()

    async def serve() -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    def run() -> None:
        try:
            anyio.run(serve, backend=backend)
        except BaseException as exc:  # for whoever waits in the other thread
            if started.done():
                logger.exception("the event loop of a process has failed")
            else:
                started.set_exception(exc)

    thread = threading.Thread(target=run, name="moat-kv coordination", daemon=True)
    thread.start()
    portal = started.result()
    try:
        yield portal
    finally:
        if os.getpid() == pid:
            portal.call(portal.stop, True)  # also calls that wait for a server
            thread.join()
