"""For the commands that stay until a signal comes: `server`, and the runners.

SIGTERM ends them with 0, SIGINT with 130; both cleanly, by cancelling what they do. Asked a second
time, the process ends at once. systemd is told when it is ready, that it turns, and when it stops.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import anyio.abc

from moat_kv.server import notify
from moat_kv_cli import command


async def until_signal(
    serve: Callable[..., Coroutine[Any, Any, None]], ready: Callable[[Any], str]
) -> int:
    """Run `serve(task_status=...)` until a signal comes; the exit code for it.

    `ready` gets what `serve` started with, tells the user, and returns what systemd shows.
    """
    received: list[int] = []
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as outer:
            async with anyio.create_task_group() as tasks:
                outer.start_soon(_wait, signals, received, tasks.cancel_scope)
                status = ready(await tasks.start(serve))
                notify.notify(f"READY=1\nSTATUS={status}")
                tasks.start_soon(notify.feed_watchdog)
            outer.cancel_scope.cancel()
    return command.INTERRUPTED if signal.SIGINT in received else command.FINE


async def _wait(
    signals: AsyncIterator[signal.Signals], received: list[int], scope: anyio.CancelScope
) -> None:
    async for number in signals:
        if received:
            os._exit(command.INTERRUPTED)  # asked twice: no more patience
        received.append(number)
        notify.notify("STOPPING=1")
        scope.cancel()
