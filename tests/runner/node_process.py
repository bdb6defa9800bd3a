"""A runner as a process of its own: URL NAME BACKEND; prints a line when it runs jobs."""

from __future__ import annotations

import signal
import sys

import anyio
import anyio.abc

from moat_kv import open_client
from moat_kv_runner import run


async def main(url: str, name: str) -> None:
    async with anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:

            async def serve(*, task_status: anyio.abc.TaskStatus[str]) -> None:
                async with open_client(url, name=name) as client:
                    await run(client, name=name, task_status=task_status)

            print(f"{await tasks.start(serve)}\n", end="", flush=True)
            async for _signal in signals:
                tasks.cancel_scope.cancel()
                break


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], backend=sys.argv[3])
