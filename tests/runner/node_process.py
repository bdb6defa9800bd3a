"""A runner as a process of its own: URL NAME BACKEND [ISOLATE [TTL_S]].

Prints a line when it runs jobs.
"""

from __future__ import annotations

import signal
import sys

import anyio
import anyio.abc

from moat_kv import open_client
from moat_kv_runner import run


async def main(url: str, name: str, isolate: str | None, ttl_s: float | None) -> None:
    async with anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:

            async def serve(*, task_status: anyio.abc.TaskStatus[str]) -> None:
                async with open_client(url, name=name) as client:
                    await run(
                        client, name=name, isolate=isolate, ttl_s=ttl_s, task_status=task_status
                    )

            print(f"{await tasks.start(serve)}\n", end="", flush=True)
            async for _signal in signals:
                tasks.cancel_scope.cancel()
                break


if __name__ == "__main__":
    url, name, backend, *more = sys.argv[1:]
    isolate = more[0] if more else None
    ttl_s = float(more[1]) if len(more) > 1 else None
    anyio.run(main, url, name, isolate, ttl_s, backend=backend)
